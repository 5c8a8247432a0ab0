"""The packages of the extra `rag`, asked for by name before they are used."""

from __future__ import annotations

import importlib.util

from nybble.errors import MissingExtraError

INSTALL = 'pip install "nybble[rag]"'


def need(*modules: str) -> None:
    """Refuse to go on without these modules.

    Raises:
        MissingExtraError: names the ones that are not installed.
    """
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    if absent:
        raise MissingExtraError("packages of nybble rag are not installed",
                                seen=f"missing: {', '.join(absent)}", hint=INSTALL)  # fmt: skip
