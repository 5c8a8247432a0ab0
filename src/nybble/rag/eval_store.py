"""Answers that were given once, kept by what decides them: a line of JSON each.

A line is written and synced before the next question is asked, so a run that is killed loses one
answer at most. What judging needs is kept, the judgement itself is not: it is made anew from the
text, so that a better judge needs no new answers.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

import filelock

from nybble.errors import NybbleError
from nybble.results.store import check_folder, disk_errors

_NAME = "answers.jsonl"


@dataclass(frozen=True)
class Kept:
    """An answer as a server gave it.

    Attributes:
        text: of the model.
        cited: numbers that it cites, each once.
        unknown: whether one of them has no source.
        shown: of each source, in order of their numbers, positions among the retrieved passages.
        sources: their places, in words.
        packed: hash of what the model was shown.
        finish: "stop", "length" or the server's word.
        tokens: of the answer; None where the server does not tell.
        seconds: until its end.
    """

    text: str
    cited: tuple[int, ...]
    unknown: bool
    shown: tuple[tuple[int, ...], ...]
    sources: tuple[str, ...]
    packed: str
    finish: str
    tokens: int | None
    seconds: float


class AnswerStore:
    """The answers of one run folder; a context manager that holds the folder for this process.

    Args:
        folder: made where it is missing.
        fresh: forget what is there.

    Raises:
        NybbleError: the folder cannot be written, or another run holds it.
    """

    def __init__(self, folder: Path, fresh: bool = False) -> None:
        check_folder(folder)
        self.folder = folder
        self._path = folder / _NAME
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(folder / ".lock", blocking=False)
        self._fresh = fresh
        self._kept: dict[str, Kept] = {}

    def __enter__(self) -> AnswerStore:
        with disk_errors(self.folder):
            try:
                self._lock.acquire()
            except filelock.Timeout as error:
                raise NybbleError(
                    "another nybble run is writing to this folder", seen=self.folder,
                    hint="wait for it, or give this run its own --out FOLDER",
                ) from error  # fmt: skip
            if self._fresh:
                self._path.unlink(missing_ok=True)
            self._read()
        return self

    def __exit__(self, *exc: object) -> None:
        self._lock.release()

    def get(self, key: str) -> Kept | None:
        """The answer with this key, if it was given."""
        return self._kept.get(key)

    def add(self, key: str, answer: Kept) -> None:
        """Keep an answer.

        Raises:
            NybbleError: the disk is full or the folder cannot be written.
        """
        line = json.dumps({"key": key, **dataclasses.asdict(answer)}, ensure_ascii=False)
        with disk_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._kept[key] = answer

    def _read(self) -> None:
        """Read what is whole; a line cut short by a crash is cut off, so the next starts anew."""
        if not self._path.exists():
            return
        raw = self._path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            os.truncate(self._path, len(whole))
        for line in whole.splitlines():
            try:
                data = json.loads(line)
                key = data.pop("key")
                data["shown"] = tuple(tuple(map(int, s)) for s in data["shown"])
                data["cited"], data["sources"] = tuple(data["cited"]), tuple(data["sources"])
                self._kept[str(key)] = Kept(**data)
            except (ValueError, KeyError, TypeError):
                continue  # of another version, or damaged: asked again
