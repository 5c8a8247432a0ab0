"""Which engine scores a measurement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nybble.errors import NybbleError
from nybble.models.hub_cache import is_hub_id
from nybble.scoring.backend import Backend, LlamaCpp
from nybble.scoring.request import MeasureRequest
from nybble.scoring.server_backend import Servers


def choose_backend(request: MeasureRequest, paths: Sequence[Path]) -> Backend:
    """The engine asked for; "auto" is llama.cpp for what it can do itself.

    Raises:
        NybbleError: llama.cpp is asked for a model that is no GGUF.
    """
    wanted = request.engine
    if request.urls:
        return Servers(request, paths[0])
    ggufs = not any(path.is_dir() or _is_hub_id(path) for path in paths)
    if wanted == "auto":
        own = ggufs and all(s.llamacpp for s in request.settings)
        own = own and request.by is None and request.budget is None
        wanted = "llama.cpp" if own else "transformers"
    if wanted == "transformers":
        from nybble.scoring.torch_backend import Transformers  # needs an optional extra

        return Transformers(request)
    if not ggufs:
        raise NybbleError(
            "llama.cpp reads GGUF files only",
            seen=", ".join(map(str, paths)),
            allowed="a .gguf file",
            hint="--engine transformers for folders and hub ids",
        )
    return LlamaCpp(request)


def _is_hub_id(path: Path) -> bool:
    text = str(path)
    return "/" in text and is_hub_id(text) and not text.endswith(".gguf") and not path.exists()
