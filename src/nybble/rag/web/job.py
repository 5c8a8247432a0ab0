"""Indexing again, beside the answers: one at a time, with progress that the page asks for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nybble.errors import NybbleError
from nybble.rag.web.turns import Event

MOST_SKIPPED = 200  # rows shown; the rest is counted

Told = tuple[str, list[tuple[str, str]]]


@dataclass
class _State:
    running: bool = True
    text: str = "starts"
    total: float = 0.0
    done: float = 0.0
    notes: list[str] = field(default_factory=list)
    told: str = ""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    error: Event | None = None


class Job:
    """The last run of the index, and the library's Progress of it.

    Args:
        build: indexes; returns what it did in words, and each file that was skipped with why.
    """

    def __init__(self, build: Callable[[Job], Told]) -> None:
        self._build = build
        self._one = threading.Lock()
        self._state: _State | None = None

    def start(self) -> None:
        """Begin.

        Raises:
            NybbleError: it runs already.
        """
        with self._one:
            if self._state is not None and self._state.running:
                raise NybbleError("the folder is being indexed already", hint="wait until it ends")
            self._state = _State()
        threading.Thread(target=self._run, name="nybble-index", daemon=True).start()

    def as_dict(self) -> dict[str, Any] | None:
        """How it stands; None where none was begun."""
        state = self._state
        if state is None:
            return None
        shown = state.skipped[:MOST_SKIPPED]
        return {
            "running": state.running, "text": state.text, "total": state.total,
            "done": state.done, "told": state.told, "error": state.error,
            "notes": state.notes[-5:],
            "skipped": [{"path": path, "why": why} for path, why in shown],
            "more": len(state.skipped) - len(shown),
        }  # fmt: skip

    def stage(self, text: str) -> None:
        """Name a step of unknown length."""
        self._now.text, self._now.total, self._now.done = text, 0.0, 0.0

    def begin(self, text: str, total: float) -> None:
        """Start a step of known length."""
        self._now.text, self._now.total, self._now.done = text, total, 0.0

    def advance(self, done: float) -> None:
        """Move on."""
        self._now.done += done

    def note(self, text: str) -> None:
        """Something to know."""
        self._now.notes.append(text)

    @property
    def _now(self) -> _State:
        assert self._state is not None
        return self._state

    def _run(self) -> None:
        state = self._now
        try:
            state.told, state.skipped = self._build(self)
        except NybbleError as error:
            state.error = {"what": error.what, "seen": error.seen, "allowed": error.allowed,
                           "hint": error.hint}  # fmt: skip
        except Exception as error:
            state.error = {"what": f"indexing failed: {type(error).__name__}",
                           "seen": str(error)[:500]}  # fmt: skip
        finally:
            state.running = False
