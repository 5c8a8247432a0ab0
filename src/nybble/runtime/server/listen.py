"""Where a server listens, and whether it may without a key; needs no package of the server's."""

from __future__ import annotations

import socket

from nybble.errors import NybbleError
from nybble.loopback import loopback


def listen(host: str, port: int, key: str | None) -> socket.socket:
    """A socket that listens.

    Raises:
        NybbleError: see `serve`.
    """
    if not 0 <= port <= 65535:
        raise NybbleError("not a port", seen=port, allowed="1 to 65535", hint="--port 8000")
    if key is None and not loopback(host):
        raise NybbleError(
            "a server that others can reach needs an API key", seen=f"--host {host}",
            allowed="127.0.0.1 without a key; any address with one",
            hint="--api-key-file FILE, or leave out --host",
        )  # fmt: skip
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host.strip("[]"), port), family=family)
    except OSError as error:
        raise NybbleError("cannot listen on this address", seen=f"{host}:{port}: {error.strerror}",
                          hint="another --port") from error  # fmt: skip
