"""llama.cpp's own server in process, as a child of `nybble serve`: `python -m` this module.

The first line on stdin is the parameters as JSON; the server runs until stdin closes, so that it
never outlives its supervisor. The key is in the environment, never in the parameters. The log is
on stderr, at the verbosity that shows the cache in effect while loading, and the usual one after.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

from nybble.errors import NybbleError

MODULE = "nybble.engines.llamacpp.server"
KEY = "LLAMA_API_KEY"
READY = "nybble: listening on"  # the line that ends loading
FAILED = "nybble: failed:"
_TRACE, _INFO = 4, 3  # common/log.h; the cache's lines are the library's own, told from 4 on
_SET_VERBOSITY = "_Z30common_log_set_verbosity_tholdi"
# A client that hangs up is noticed between two tokens, so a thread is held for a moment only;
# more than this wait in the listening socket.
HTTP_THREADS = 64
# Prompts of past conversations kept in the host's memory. llama-server's own 8,192 MiB are more
# than a plan leaves free of a memory that is shared (planning.request.RESERVE_SHARED_GIB).
PROMPTS_MIB = 1024


def parameters(
    model: str,
    k: str,
    v: str,
    *,
    context: int,
    sequences: int,
    host: str,
    port: int,
    name: str | None,
    slots: str | None = None,
    template: str | None = None,
) -> dict[str, Any]:
    """What the child is told; plain JSON.

    Args:
        model: path of a GGUF.
        k: K type, as ggml calls it.
        v: V type.
        context: tokens of one sequence.
        sequences: slots.
        host: address to listen on.
        port: to listen on.
        name: the model is served under.
        slots: folder that clients may save slots to; None for no such endpoint.
        template: of chats, in Jinja; None for the model's own.
    """
    return {"model": model, "k": k, "v": v, "context": context, "sequences": sequences,
            "host": host, "port": port, "name": name, "slots": slots,
            "template": template}  # fmt: skip


def plain_template() -> str:
    """A chat template with tools, for models that bring none."""
    return (Path(__file__).parent / "plain.jinja").read_text(encoding="utf-8")


def line(given: dict[str, Any]) -> str:
    """The parameters as the child reads them."""
    return json.dumps(given)


def main() -> int:
    """Serve until stdin closes."""
    try:
        given = json.loads(sys.stdin.readline())
        server = start(given)
    except (NybbleError, RuntimeError, ValueError) as error:
        print(f"{FAILED} {error}", file=sys.stderr, flush=True)
        return 1
    _quieter()
    print(f"{READY} {server.listening_address}", file=sys.stderr, flush=True)
    try:
        while sys.stdin.readline():  # the supervisor says nothing more, and closes to end it
            pass
    except KeyboardInterrupt:
        pass
    # The server's destructor waits for running requests; the supervisor has waited already.
    os._exit(0)


def start(given: dict[str, Any]) -> Any:
    """Load the model and listen.

    Raises:
        RuntimeError: llama.cpp could not load or listen; its log says why.
        ValueError: not a parameter set, or an unknown KV type.
    """
    import xllamacpp

    p = xllamacpp.CommonParams()
    p.model.path = given["model"]
    p.n_ctx = given["context"] * given["sequences"]
    p.n_parallel = given["sequences"]
    # A stream of cells for each sequence: one pool would let one of them starve the others.
    p.kv_unified = False
    p.cache_type_k, p.cache_type_v = _type(given["k"]), _type(given["v"])
    if given["v"] not in ("f16", "bf16", "f32"):
        p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    p.fit_params = False  # a context that does not fit is an error, not a smaller context
    p.hostnames, p.port = [given["host"]], given["port"]
    if given["name"]:
        p.model_alias = {given["name"]}
    p.use_jinja = True
    if given["template"]:
        p.chat_template = given["template"]
    p.endpoint_metrics = True
    p.endpoint_slots = True
    p.n_threads_http = HTTP_THREADS
    p.warmup = True
    p.cache_ram_mib = PROMPTS_MIB
    p.verbosity = _TRACE
    if given["slots"]:
        p.slot_save_path = os.path.join(given["slots"], "")
    if os.environ.get(KEY):
        p.api_keys = [os.environ[KEY]]
    return xllamacpp.Server(p)


def _type(name: str) -> Any:
    import xllamacpp

    found = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{name.upper()}", None)
    if found is None:
        raise ValueError(f"unknown KV type {name}")
    return found


def _quieter() -> None:
    """Back to the usual verbosity: at 4 every request is told in full."""
    library = sys.modules["xllamacpp.xllamacpp"].__file__
    set_verbosity = getattr(ctypes.CDLL(library), _SET_VERBOSITY)
    set_verbosity.argtypes = [ctypes.c_int]
    set_verbosity.restype = None
    set_verbosity(_INFO)


if __name__ == "__main__":
    sys.exit(main())
