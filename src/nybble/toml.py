"""TOML files of users: read whole, in a bounded size, or refused in words."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from nybble.errors import NybbleError

_MAX_BYTES = 1 << 20


def read_toml(path: Path, what: str, allowed: str, hint: str) -> tuple[dict[str, Any], bytes]:
    """Read a TOML file.

    Args:
        path: its place.
        what: it is, as in "cannot read the policy".
        allowed: what it should hold.
        hint: the next step.

    Returns:
        The table, and the file's bytes.

    Raises:
        NybbleError: unreadable, over 1 MiB, not UTF-8 or no TOML.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"larger than {_MAX_BYTES:,} bytes")
        return tomllib.loads(data.decode("utf-8")), data
    # Not UTF-8 and no TOML are values too; brackets inside brackets exhaust the parser's stack.
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NybbleError(f"cannot read {what}", seen=f"{path}: {reason}", allowed=allowed,
                          hint=hint) from error  # fmt: skip
