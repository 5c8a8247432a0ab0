"""What the last question over an index was asked over, for the next one over the same."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from nybble.errors import NybbleError

FILE = "last-question.json"
_MOST = 1 << 22  # bytes


@dataclass(frozen=True)
class Last:
    """The context of a question.

    Attributes:
        question: as asked.
        passages: ids of those that were packed, best first.
        over: documents that were asked for as a whole.
    """

    question: str
    passages: tuple[int, ...]
    over: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Write it down, whole or not at all.

        Raises:
            OSError: the folder cannot be written to.
        """
        part = folder / f".{FILE}.{secrets.token_hex(4)}"
        text = json.dumps({"version": 1, "question": self.question, "passages": self.passages,
                           "over": self.over})  # fmt: skip
        try:
            part.write_text(text, encoding="utf-8")
            os.replace(part, folder / FILE)
        finally:
            part.unlink(missing_ok=True)


def read_last(folder: Path) -> Last:
    """The context of the last question over an index.

    Raises:
        NybbleError: none was asked, or what was written down of it cannot be read.
    """
    path = folder / FILE
    try:
        if path.stat().st_size > _MOST:
            raise ValueError("too large")
        data = json.loads(path.read_text(encoding="utf-8"))
        ids = tuple(int(i) for i in data["passages"])
        return Last(str(data["question"]), ids, tuple(str(d) for d in data["over"]))
    except FileNotFoundError:
        raise NybbleError("no question was asked over this index yet", seen="--same",
                          hint='nybble rag ask "..." without --same') from None  # fmt: skip
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise NybbleError("the last question cannot be read", seen=f"{path}: {error}",
                          hint='nybble rag ask "..." without --same') from error  # fmt: skip
