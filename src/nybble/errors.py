"""Errors that a user can act on.

One class for every user-visible failure: it carries what failed, the value seen, the values
allowed and the next command, so the CLI prints all four and never a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NybbleError(Exception):
    """A failure the user can act on; the CLI ends with exit code 1.

    Args:
        what: what failed, in one sentence without a full stop.
        seen: the offending value, as the user wrote it.
        allowed: the values or the range that would have worked.
        hint: the next command or step.
    """

    def __init__(
        self,
        what: str,
        *,
        seen: object | None = None,
        allowed: str | Iterable[str] | None = None,
        hint: str | None = None,
    ) -> None:
        self.what = what
        self.seen = None if seen is None else str(seen)
        if allowed is None or isinstance(allowed, str):
            self.allowed = allowed
        else:
            self.allowed = ", ".join(allowed)
        self.hint = hint
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [self.what]
        if self.seen is not None:
            lines.append(f"  seen:    {self.seen}")
        if self.allowed:
            lines.append(f"  allowed: {self.allowed}")
        if self.hint:
            lines.append(f"  try:     {self.hint}")
        return "\n".join(lines)


class ModelFileError(NybbleError):
    """The model file is missing, damaged, hostile or of a kind nybble cannot use."""


class EngineError(NybbleError):
    """The engine refused, crashed, hung or was killed."""


class CacheNotReadError(NybbleError):
    """A quantized candidate shows exactly zero drift: its quantized cache was never read."""


class MissingExtraError(NybbleError):
    """An optional part is not installed; the hint is the exact install command."""


def unknown(
    what: str, word: str, known: Iterable[str], *, seen: object | None = None,
    allowed: str | Iterable[str] | None = None, hint: str | None = None, mark: str = "",
) -> NybbleError:  # fmt: skip
    """The error for a name that is not among the known ones; it says which is nearest.

    Args:
        what: "unknown task", for example.
        word: the name.
        known: all that would have done.
        seen: where it stood, if more than the name is to be shown.
        allowed: how the known ones are shown, if not as they are.
        hint: the next command or step.
        mark: written before a name, such as a plus sign.
    """
    names = list(known)
    near = nearest(word, names)
    return NybbleError(what + (f"; did you mean {mark}{near}?" if near else ""),
                       seen=word if seen is None else seen,
                       allowed=names if allowed is None else allowed, hint=hint)  # fmt: skip


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known name closest to `word`, or None when nothing is close."""
    found = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.5)
    return found[0] if found else None
