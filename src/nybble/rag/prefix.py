"""Files of contexts whose cache was kept: what each is of, which may be used, which must go.

A file is named by the digest of all that decides its bytes: weights, engine build, KV setting,
chat template and tokens. A record beside it repeats these, and before the file is used its own
tokens and types are held against them. That finds files that are damaged, mixed up or of another
model; it is no protection from somebody who can write into the folder, which is the user's only.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import secrets
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from nybble.engines.llamacpp.slotfile import SavedSlot, parse_slot
from nybble.engines.llamacpp.slotthin import thin
from nybble.errors import EngineError, NybbleError
from nybble.formats.setting import parse

_VERSION = 1
_LOCK = ".lock"
_ABANDONED = 3600.0  # seconds after which an unfinished file is nobody's
_MOST_RECORD = 1 << 20  # bytes
_CHUNK = 1 << 24
# What differs between two keys, in words; the first that does is told.
_PARTS = {
    "weights": "another model",
    "engine": "another build of the engine",
    "setting": "another KV setting",
    "template": "another chat template",
    "tokens": "documents that have changed since",
}


@dataclass(frozen=True)
class PrefixKey:
    """All that decides the bytes of a context's cache.

    Attributes:
        weights: SHA-256 of the model's file.
        engine: its build, in its own words.
        setting: KV setting; "" where the server's is not known.
        template: SHA-256 of what frames the prompt.
        tokens: SHA-256 of the token ids.
    """

    weights: str
    engine: str
    setting: str
    template: str
    tokens: str

    @property
    def name(self) -> str:
        """Of its file, without ending."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:40]


@dataclass(frozen=True)
class PrefixRecord:
    """What is written down beside a file.

    Attributes:
        key: what it is of.
        scope: documents that it was asked over; "" where retrieval chose passages.
        n_tokens: of the context.
        file_bytes: of the file.
        cache_bytes: of K and V in it.
        crc32: of the file.
        types: pairs of K and V types in it, "q8_0/q4_0".
        prefill: seconds that computing it took; None where the server had most of it.
    """

    key: PrefixKey
    scope: str
    n_tokens: int
    file_bytes: int
    cache_bytes: int
    crc32: int
    types: tuple[str, ...]
    prefill: float | None


class PrefixStore:
    """A folder of such files.

    Args:
        folder: that the server saves slots to; made for the user only where it is missing.
        keep: GiB that the files may take together.

    Raises:
        NybbleError: the folder cannot be made.
    """

    def __init__(self, folder: Path, keep: float) -> None:
        self.folder = folder
        self._keep = keep * 2**30
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not (folder / _LOCK).exists():  # the first use: a server may have made the folder
                folder.chmod(0o700)
        except OSError as error:
            raise NybbleError("cannot make the folder for prefixes", seen=str(error),
                              hint="--no-prefix answers without") from error  # fmt: skip
        self._lock = FileLock(folder / _LOCK)

    def file(self, key: PrefixKey) -> str:
        """Name of a key's file within the folder."""
        return f"{key.name}.slot"

    def look(
        self, key: PrefixKey, ids: Sequence[int], scope: str
    ) -> tuple[PrefixRecord | None, str]:
        """The record of a file that may be used, or None and why, in words.

        What is there and may not be used is removed, as it will be made anew. Files of other
        models, engines and KV settings stay: they are good for these.

        Args:
            key: of the context.
            ids: its tokens.
            scope: documents that it is asked over; "" for none in particular.
        """
        path = self._record(key)
        if not path.exists():
            return None, self._relative(key, scope)
        try:
            record = _read(path)
            if record.key != key:
                raise ValueError("the record beside it is of something else")
            with (self.folder / self.file(key)).open("rb") as opened:
                self._hold(record, ids, opened.fileno())
        except (OSError, ValueError, TypeError, KeyError, AttributeError, NybbleError) as error:
            self.remove(key)
            said = error.what if isinstance(error, NybbleError) else str(error)
            return None, f"the file that was kept is refused ({said}) and made anew"
        return record, ""

    def add(
        self, part: str, key: PrefixKey, ids: Sequence[int], scope: str, prefill: float | None
    ) -> PrefixRecord:
        """Take a file that the server has just saved, after a look into it.

        Args:
            part: its name in the folder; it is gone afterwards.
            key: of its context.
            ids: tokens of the context.
            scope: documents that it was asked over.
            prefill: seconds that computing it took, if all was computed.

        Raises:
            EngineError: it holds other tokens or types than it should.
            OSError: it is not there, or the disk is full.
        """
        path, made = self.folder / part, self.folder / f"{secrets.token_hex(8)}.part"
        mark = self.folder / f"{secrets.token_hex(8)}.part"
        try:
            saved = thin(path, made)
            path.unlink()
            _check(saved, ids, key.setting)
            types = tuple(sorted("/".join(pair) for pair in saved.types))
            with made.open("rb") as file:
                crc, size = _crc(file.fileno()), os.fstat(file.fileno()).st_size
            record = PrefixRecord(key, scope, len(ids), size, saved.n_bytes, crc, types, prefill)
            mark.write_text(json.dumps({"version": _VERSION, **asdict(record)}), encoding="utf-8")
            with self._lock:
                os.replace(made, self.folder / self.file(key))
                os.replace(mark, self._record(key))
                self._trim(key)
        finally:
            for left in (path, made, mark):
                left.unlink(missing_ok=True)
        return record

    def touch(self, key: PrefixKey) -> None:
        """Note that a file was used now."""
        try:
            os.utime(self._record(key))
        except OSError:
            pass  # removed meanwhile: it was read before

    def remove(self, key: PrefixKey) -> None:
        """Remove a file and its record."""
        self._record(key).unlink(missing_ok=True)
        (self.folder / self.file(key)).unlink(missing_ok=True)

    def records(self) -> list[PrefixRecord]:
        """What is there and can be read, longest unused first."""
        return [record for _, record in self._dated()]

    def _record(self, key: PrefixKey) -> Path:
        return self.folder / f"{key.name}.json"

    def _dated(self) -> list[tuple[float, PrefixRecord]]:
        found = []
        for path in self.folder.glob("*.json"):
            try:
                record = _read(path)
                if path.stem == record.key.name:
                    found.append((path.stat().st_mtime, record))
            except (OSError, ValueError, TypeError, KeyError):
                continue
        return sorted(found, key=lambda pair: pair[0])

    def _hold(self, record: PrefixRecord, ids: Sequence[int], file: int) -> None:
        """Hold a file against its record and the context's tokens.

        Raises:
            ValueError: it is not what the record says.
            EngineError: it is damaged, or of other tokens or types.
        """
        size = os.fstat(file).st_size
        if size != record.file_bytes or not size:
            raise ValueError(f"{size:,} bytes, not {record.file_bytes:,}")
        with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as data:
            saved = parse_slot(data)
        _check(saved, ids, record.key.setting)
        types = {"/".join(pair) for pair in saved.types}
        if types != set(record.types):
            raise ValueError(f"its cache is in {', '.join(sorted(types)) or 'other types'}")
        if _crc(file) != record.crc32:
            raise ValueError("its bytes have changed")

    def _relative(self, key: PrefixKey, scope: str) -> str:
        """Why a file of the same documents does not do; one that is out of date is removed."""
        if not scope:
            return ""
        for record in reversed(self.records()):
            if record.scope != scope:
                continue
            different = [part for part in _PARTS if getattr(record.key, part) != getattr(key, part)]
            if not set(different) & {"weights", "engine", "setting"}:
                self.remove(record.key)
                return f"the file that was kept is of {_PARTS[different[0]]}; it is removed"
            return f"a file that is kept is of {_PARTS[different[0]]}, which this is not"
        return ""

    def _trim(self, newest: PrefixKey) -> None:
        """Remove the longest unused until the rest fits, and what was never finished."""
        dated = self._dated()
        total = sum(record.file_bytes for _, record in dated)
        for _, record in dated:
            if total <= self._keep:
                break
            if record.key != newest:
                self.remove(record.key)
                total -= record.file_bytes
        for path in self._strays({record.key.name for _, record in dated}):
            path.unlink(missing_ok=True)

    def _strays(self, known: set[str]) -> Iterator[Path]:
        for ending in ("*.part", "*.slot"):
            for path in self.folder.glob(ending):
                try:
                    old = time.time() - path.stat().st_mtime > _ABANDONED
                except OSError:
                    continue
                if old and path.stem not in known:
                    yield path


def tokens_digest(ids: Sequence[int]) -> str:
    """SHA-256 of token ids."""
    return hashlib.sha256(np.asarray(ids, "<i4").tobytes()).hexdigest()


def _check(saved: SavedSlot, ids: Sequence[int], setting: str) -> None:
    if list(saved.tokens) != list(ids):
        raise EngineError("it holds other tokens")
    if len(ids) != saved.caches[0].cells:
        raise EngineError(f"it holds {saved.caches[0].cells:,} of {len(ids):,} tokens")
    asked = parse(setting) if setting else None
    for types in saved.types:
        if asked is not None and types != (asked.k, asked.v):
            raise EngineError(f"its cache is in {'/'.join(types)}, not {setting}")


def _crc(file: int) -> int:
    found = at = 0
    while part := os.pread(file, _CHUNK, at):
        found = zlib.crc32(part, found)
        at += len(part)
    return found


def _read(path: Path) -> PrefixRecord:
    if path.stat().st_size > _MOST_RECORD:
        raise ValueError("its record is too large")
    data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or data.pop("version", None) != _VERSION:
        raise ValueError("its record is of another version")
    key = PrefixKey(**{name: str(value) for name, value in data.pop("key").items()})
    types = tuple(str(t) for t in data.pop("types"))
    numbers = {n: int(data[n]) for n in ("n_tokens", "file_bytes", "cache_bytes", "crc32")}
    prefill = None if data["prefill"] is None else float(data["prefill"])
    return PrefixRecord(key, str(data["scope"]), types=types, prefill=prefill, **numbers)
