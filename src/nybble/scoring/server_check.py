"""Is this the server that was meant? Asked before the first token is scored."""

from __future__ import annotations

from nybble.engines.server.base import Identity, Server
from nybble.engines.server.http import RefusedError
from nybble.errors import EngineError
from nybble.formats import KVSetting
from nybble.scoring.prepare import PreparedModel
from nybble.scoring.server_backend import Servers


def check_server(
    server: Server, setting: KVSetting, backend: Servers, model: PreparedModel
) -> Identity:
    """Ask a server who it is, and refuse one that cannot score this setting of this model.

    Raises:
        EngineError: it stores another KV type, its context is too short, or it has another
            vocabulary or tokenizer than the model; or it cannot be asked.
    """
    found = server.identity()
    if server.stores(setting, found.kv) is False:
        raise EngineError(
            "the server stores another KV type than its address was given for",
            seen=f"{server.client.url}: {found.kv}", allowed=str(setting),
            hint="start the right one there and run the same command again: what is scored is kept",
        )  # fmt: skip
    need = max(backend.request.contexts) + 1  # one token is generated after the last
    if found.context is not None and found.context < need:
        raise EngineError(
            "the server's context is too short for the text to score",
            seen=f"{found.context:,} tokens", allowed=f"{need:,} or more",
            hint=f"start it with a longer one, or --context {found.context - 1}",
        )  # fmt: skip
    vocabulary = backend.geometry.vocabulary
    if found.vocabulary is not None and vocabulary and found.vocabulary != vocabulary:
        raise EngineError(
            "the server serves a model with another vocabulary",
            seen=f"{found.weights}: {found.vocabulary:,} tokens",
            allowed=f"{vocabulary:,}, as {model.source.name} has",
        )  # fmt: skip
    _check_tokenizer(server, backend, model)
    if found.weights != model.source.name:
        server.notes.append(
            f"the server calls its weights {found.weights}, nybble took tokens from "
            f"{model.source.name}: over HTTP nobody can see whether they are the same"
        )
    return found


def _check_tokenizer(server: Server, backend: Servers, model: PreparedModel) -> None:
    text, mine = backend.probe(model)
    try:
        theirs = server.tokenize(text)
    except RefusedError as error:
        server.notes.append(f"the server does not tokenize ({error.status}), so its tokenizer "
                            "was not compared")  # fmt: skip
        return
    # Mine may begin with BOS; theirs has none.
    if mine not in (theirs[: len(mine)], [*mine[:1], *theirs[: len(mine) - 1]]):
        at = next((i for i, (a, b) in enumerate(zip(mine[1:], theirs, strict=False)) if a != b), 0)
        raise EngineError(
            "the server tokenizes otherwise than the model that was named",
            seen=f"{theirs[at : at + 5]} at token {at}", allowed=f"{mine[at + 1 : at + 6]}",
            hint="name the model that the server serves",
        )  # fmt: skip
