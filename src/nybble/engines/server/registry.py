"""The servers that can score. A new one is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from nybble.engines.server.base import Server
from nybble.engines.server.http import Client
from nybble.engines.server.llamacpp import LlamaCppServer
from nybble.engines.server.sglang import SGLangServer
from nybble.engines.server.vllm import VLLMServer

SERVERS: Mapping[str, type[Server]] = MappingProxyType(
    {kind.name: kind for kind in (LlamaCppServer, VLLMServer, SGLangServer)}
)


def connect(engine: str, url: str, timeout: float) -> Server:
    """A server of this kind behind an address; nothing is sent yet.

    Raises:
        NybbleError: not an address.
    """
    return SERVERS[engine](Client(url, timeout))
