"""Which embedding a name means."""

from __future__ import annotations

from collections.abc import Callable

from nybble.errors import NybbleError
from nybble.rag.embed.base import Embedder
from nybble.rag.embed.minilm import NAME, minilm
from nybble.rag.embed.sentence import SentenceModel
from nybble.rag.embed.served import ServedModel

DEFAULT = NAME
# Models that a package carries; one line each.
CARRIED: dict[str, Callable[[], Embedder]] = {NAME: minilm}


def embedder(name: str = DEFAULT, model: str = "", key: str | None = None) -> Embedder:
    """The embedding of this name, not yet loaded.

    Args:
        name: minilm, a folder, a name in the local hub cache, or http(s)://HOST/v1.
        model: that a server is asked for.
        key: of the server.

    Raises:
        NybbleError: a server without a model, or a model for what is no server.
    """
    if is_address(name):
        return ServedModel(name.rstrip("/"), model, key)
    if model:
        raise NybbleError("--embedding-model is for embedding servers", seen=name,
                          allowed="http(s)://HOST/v1", hint="leave it out")  # fmt: skip
    return CARRIED[name]() if name in CARRIED else SentenceModel(name)


def is_address(name: str) -> bool:
    """Whether a name is a server's address."""
    return name.startswith(("http://", "https://"))
