"""A model on a web server or on the Hugging Face hub: its headers and config.json, no weights.

Range requests fetch the start of each file, about twice as much each time until the header is
whole. The readers of local files check it, within the same bounds.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from nybble.errors import ModelFileError
from nybble.models import gguf_header, safetensors_header
from nybble.models.file_kinds import show
from nybble.models.first_bytes import NeedMoreBytes
from nybble.models.folder import INDEX
from nybble.models.gguf_types import GGUFHeader
from nybble.models.open_file import MAX_JSON_BYTES
from nybble.models.remote_names import HUB, inside, is_remote, names_gguf, url_of
from nybble.models.safetensors_header import SafetensorsHeader

if TYPE_CHECKING:  # 40 ms of imports that a plan of a local model does not pay
    from nybble.models.http_connection import Limits

FIRST_GGUF = 1 << 20  # bytes; a vocabulary of 32,000 fits, one of 262,144 takes 16 MiB
MAX_STEP = 8 << 20  # bytes; so much may be fetched in vain
FIRST_OTHER = 1 << 17  # the later files of a split GGUF, safetensors: headers without vocabulary
MAX_OTHER = 16 << 20  # bytes of one such header
MAX_ALL_OTHER = 64 << 20  # bytes of all of them together: 500,000 tensors
MAX_FILES = 1000  # of one model; the largest real ones have 200
_AT_ONCE = 8  # files that are read at a time
_SINGLE = "model.safetensors"
_OTHER_COPY = "look for another copy of the model"
_PARSING = threading.Lock()  # one at a time: JSON takes up to 20 times its size in memory

__all__ = ["RemoteFolder", "is_remote", "names_gguf", "remote_config", "remote_folder",
           "remote_gguf"]  # fmt: skip

Header = TypeVar("Header", GGUFHeader, SafetensorsHeader)


@dataclass(frozen=True)
class RemoteFolder:
    """What a remote model of config.json and safetensors files says of itself.

    `config` is config.json as it stands there. `headers` are those of the safetensors files by
    file name; their `file_size` is in bytes.
    """

    url: str
    config: Mapping[str, Any]
    headers: Mapping[str, SafetensorsHeader]


def remote_gguf(model: str, limits: Limits | None = None) -> list[GGUFHeader]:
    """Read the header of a remote GGUF file, and those of its other files when it is split.

    Args:
        model: hf:org/repo[@revision]/file.gguf, a URL of the hub (pages of files too), or the URL
            of the file itself. Of a split model, its first file.
        limits: times and attempts; None for the defaults.

    Returns:
        One header for each file, in their order.

    Raises:
        ModelFileError: the name is wrong, HF_HUB_OFFLINE is set, the server refuses, stalls, lies
            or sends what cannot be read (see `HTTPFile`), or the file is damaged or no GGUF.
    """
    url = url_of(model)
    if url.startswith(f"{HUB}/") and not names_gguf(url):
        raise ModelFileError("This names no GGUF file of the hub", seen=show(model),
                             allowed="hf:org/repo/file.gguf",
                             hint="add the name of a file; they are listed at "
                             + url.replace("/resolve/", "/tree/", 1))  # fmt: skip
    reading = _Reading(limits)
    first = reading.header(url, gguf_header.read_header_bytes, FIRST_GGUF,
                           gguf_header.MAX_HEADER_BYTES)  # fmt: skip
    n = first.split_count
    if n == 1:
        return [first]
    number = first.metadata.get("split.no", 0)
    index = number if isinstance(number, int) else 0
    base, query, rest = url.partition("?")
    ending = f"-{index + 1:05d}-of-{n:05d}.gguf"
    stem = base.removesuffix(ending)
    urls = [f"{stem}-{i:05d}-of-{n:05d}.gguf{query}{rest}" for i in range(1, n + 1)]
    if stem == base or index != 0 or n > MAX_FILES:
        raise ModelFileError("This is not the first file of the split model",
                             seen=f"{show(base.rsplit('/', 1)[-1])}, split.no {index}, "
                             f"split.count {n:,}",
                             allowed=f"...-00001-of-{n:05d}.gguf, of up to {MAX_FILES:,} files",
                             hint="name the file that ends so")  # fmt: skip
    headers, names = [first], {t.name for t in first.tensors}
    for i, header in enumerate(reading.headers(urls[1:], gguf_header.read_header_bytes), start=1):
        here = {t.name for t in header.tensors}
        found = header.metadata.get("split.no")
        if header.split_count != n or found != i or names & here:
            raise ModelFileError(f"File {i + 1} of the split model belongs to another model",
                                 seen=f"split.no {show(found)}",
                                 allowed=f"split.no {i} of {n} and its own tensors",
                                 hint=_OTHER_COPY)  # fmt: skip
        names |= here
        headers.append(header)
    total = first.metadata.get("split.tensors.count", len(names))
    if total != len(names):
        raise ModelFileError("The files of the split model do not hold all its tensors",
                             seen=f"{len(names):,}", allowed=f"{show(total)} tensors",
                             hint=_OTHER_COPY)  # fmt: skip
    return headers


def remote_config(model: str, limits: Limits | None = None) -> dict[str, Any]:
    """Return the config.json of a remote model; see `remote_folder`."""
    return _Reading(limits).json(inside(url_of(model), "config.json"))


def remote_folder(model: str, limits: Limits | None = None) -> RemoteFolder:
    """Read config.json and the headers of all safetensors files of a remote model.

    Args:
        model: org/repo, hf:org/repo[@revision][/folder], a page of the hub, or the URL of a
            folder, or of its config.json, on another server.
        limits: times and attempts; None for the defaults.

    Raises:
        ModelFileError: as of `remote_gguf`; or a file is missing, damaged, or not of this model.
    """
    url, reading = url_of(model), _Reading(limits)
    config = reading.json(inside(url, "config.json"))
    return RemoteFolder(url, MappingProxyType(config), MappingProxyType(_weights(url, reading)))


def _weights(url: str, reading: _Reading) -> dict[str, SafetensorsHeader]:
    from nybble.models.http_refusals import NoSuchFile

    read = safetensors_header.read_header_bytes
    try:  # as transformers does: the single file before the index
        return {_SINGLE: reading.header(inside(url, _SINGLE), read, FIRST_OTHER, MAX_OTHER)}
    except NoSuchFile:
        pass
    try:
        tensors = _tensors_of(reading.json(inside(url, INDEX)).get("weight_map"))
    except NoSuchFile as e:
        raise ModelFileError("The remote model has no safetensors weights", seen=show(url),
                             allowed=f"{_SINGLE}, or parts with {INDEX}",
                             hint="name another model, or a GGUF of this one") from e  # fmt: skip
    headers: dict[str, SafetensorsHeader] = {}
    seen: set[str] = set()
    urls = [inside(url, name) for name in tensors]
    for name, header in zip(tensors, reading.headers(urls, read), strict=True):
        here = {t.name for t in header.tensors}
        absent, twice = tensors[name] - here, seen & here
        if absent or twice:
            what = "lacks a tensor" if absent else "repeats a tensor of another part"
            raise ModelFileError(f"{name} {what}: it is not the file of {INDEX}",
                                 seen=show(min(absent or twice)),
                                 hint=_OTHER_COPY)  # fmt: skip
        seen |= here
        headers[name] = header
    return headers


def _tensors_of(weight_map: object) -> dict[str, set[str]]:
    """The tensors that an index says to be in each file, by file name."""
    hint = _OTHER_COPY
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{INDEX} does not say where the weights are", hint=hint,
                             seen=f"weight_map {show(weight_map)}",
                             allowed="an object of tensor and file names")  # fmt: skip
    tensors: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        # A plain name: no path or URL leads out of the folder.
        if not isinstance(name, str) or not re.fullmatch(r"(?a:[\w.-]{1,200})\.safetensors", name):
            raise ModelFileError(f"{INDEX} names a file that is not one of the folder's",
                                 seen=show(name), hint=hint, allowed="names such as "
                                 "model-00001-of-00002.safetensors")  # fmt: skip
        tensors.setdefault(name, set()).add(tensor)
    if len(tensors) > MAX_FILES:
        raise ModelFileError(f"{INDEX} names too many files", seen=f"{len(tensors):,}",
                             allowed=f"up to {MAX_FILES:,}", hint=hint)  # fmt: skip
    return dict(sorted(tensors.items()))


@dataclass
class _Reading:
    """The reading of one model: all its files share one deadline."""

    given: Limits | None
    limits: Limits = field(init=False)
    deadline: float = field(init=False)

    def __post_init__(self) -> None:
        from nybble.models.http_connection import Limits

        self.limits = self.given or Limits()
        self.deadline = time.monotonic() + self.limits.total

    def header(self, url: str, read: Callable[[bytearray, int, str], Header], first: int,
               most: int) -> Header:  # fmt: skip
        """Read one header, of up to `most` bytes, beginning with the `first` bytes of the file."""
        from nybble.models.http_file import HTTPFile

        with HTTPFile(url, self.limits, self.deadline) as file:
            wanted = first
            while True:
                file.fetch(wanted)
                assert file.size is not None
                try:
                    with _PARSING:
                        return read(file.data, file.size, file.name)
                except NeedMoreBytes as e:
                    if e.n_bytes > most:
                        what = f"{file.name}: the header is too large"
                        raise ModelFileError(what, seen=f"{e.n_bytes:,} bytes or more",
                                             allowed=f"up to {most:,} bytes",
                                             hint=_OTHER_COPY) from e  # fmt: skip
                    have = len(file.data)
                    wanted = min(max(e.n_bytes, have + min(have, MAX_STEP)), most)

    def headers(
        self, urls: Sequence[str], read: Callable[[bytearray, int, str], Header]
    ) -> Iterator[Header]:
        """Read the headers of the further files of a model, some at a time, in their order."""
        from concurrent.futures import ThreadPoolExecutor

        total = 0
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            # In groups, so that no more than a group's bytes are in memory.
            for i in range(0, len(urls), _AT_ONCE):
                for header in pool.map(
                    lambda url: self.header(url, read, FIRST_OTHER, MAX_OTHER),
                    urls[i : i + _AT_ONCE],
                ):
                    total += header.data_offset
                    if total > MAX_ALL_OTHER:
                        raise ModelFileError("The headers of this model are too large",
                                             seen=f"more than {total:,} bytes",
                                             allowed=f"up to {MAX_ALL_OTHER:,} bytes",
                                             hint=_OTHER_COPY)  # fmt: skip
                    yield header

    def json(self, url: str) -> dict[str, Any]:
        """Return the object that a remote JSON file holds; NaN is taken, as for local files."""
        from nybble.models.http_file import HTTPFile

        with HTTPFile(url, self.limits, self.deadline) as file:
            data, name = file.whole(MAX_JSON_BYTES), file.name
        try:
            value = json.loads(data.decode("utf-8"))
        except (ValueError, RecursionError) as e:
            raise ModelFileError(f"{name} on the server is not JSON",
                                 seen=f"{show(e)}; it starts with {show(data[:20])}",
                                 hint=f"look at {url.partition('?')[0]}") from e  # fmt: skip
        if not isinstance(value, dict):
            look = f"look at {url.partition('?')[0]}"
            raise ModelFileError(f"{name} does not hold a JSON object", seen=show(data[:60]),
                                 allowed="{...}", hint=look)  # fmt: skip
        return value
