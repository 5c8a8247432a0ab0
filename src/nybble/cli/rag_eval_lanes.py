"""KV settings of `nybble rag eval`, each with a way to start its server or to reach it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from nybble.errors import NybbleError
from nybble.results.store import content_key

if TYPE_CHECKING:
    from nybble.formats import KVSetting
    from nybble.rag.answers import Server
    from nybble.rag.eval_answers import Lane

DEFAULT_KV = "f16/f16,q8_0/q8_0,q4_0/q4_0"
_HARDENED = "q4_0/q4_0"
_ENGINE = "llama.cpp"
_PATIENCE = 10.0  # seconds
# What stays the same from one start of a server to the next.
_TOLD = (("/v1/models", ("id", "root", "max_model_len")),
         ("/props", ("model_path", "build_info", "chat_template")))  # fmt: skip


def local_lanes(model: Path, kv: str, hardened: Path | None, context: int) -> list[Lane]:
    """A lane a setting, served here by llama.cpp one after the other.

    Args:
        model: a GGUF.
        kv: settings with commas between.
        hardened: the same model hardened, as one more row in q4_0/q4_0; None for none.
        context: tokens of each server's context.

    Raises:
        NybbleError: a file is not there, or an unknown setting.
    """
    from nybble.formats import expand

    settings = expand(kv, None, None, (True,))
    lanes = [_local(model, setting, "", context) for setting in settings]
    if hardened is not None:
        (setting,) = expand(_HARDENED, None, None, (True,))
        lanes.append(_local(hardened, setting, "hardened", context))
    return lanes


def url_lanes(urls: tuple[str, ...], served: str, key: str | None) -> list[Lane]:
    """A lane for each `SETTING=URL`.

    Args:
        urls: as given.
        served: the model's name there; "" for the first that a server lists.
        key: API key; None for none.

    Raises:
        NybbleError: not of this form, an unknown setting, or no address.
    """
    from nybble.engines.server.http import check_url
    from nybble.formats import parse
    from nybble.rag.answers import Server
    from nybble.rag.eval_answers import Lane

    found = []
    for value in urls:
        name, equals, address = value.partition("=")
        if not (equals and name.strip() and address.strip()):
            raise NybbleError("--url takes a KV setting and an address", seen=value,
                              hint="--url f16/f16=http://127.0.0.1:8000")  # fmt: skip
        setting, url = parse(name), check_url(address.strip())
        server = Server(url, served, key, setting=str(setting))
        found.append(Lane(str(setting), not setting.quantized, url, _identity(url, served, key),
                          "a running server", partial(_reached, server), remote=True))  # fmt: skip
    return found


def _identity(url: str, served: str, key: str | None) -> str:
    """Address, and what a server tells of its model; its KV setting is the user's word."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    told = []
    for path, names in _TOLD:
        try:
            answer = httpx.get(url + path, headers=headers, timeout=_PATIENCE, trust_env=False)
            data = answer.json()
        except (httpx.HTTPError, ValueError):  # the lane will say that nobody is there
            continue
        rows = data.get("data", [data]) if isinstance(data, dict) else []
        told += [[row.get(n) for n in names] for row in rows if isinstance(row, dict)]
    return f"{url} {served} {content_key(told)}"


def _local(model: Path, setting: KVSetting, mark: str, context: int) -> Lane:
    from nybble.cli.rag_server import started
    from nybble.environment import cache_dir, package_version
    from nybble.models.content_hash import file_sha256
    from nybble.rag.eval_answers import Lane

    if not model.is_file():
        raise NybbleError("there is no such model", seen=model, allowed="a GGUF on this disk",
                          hint="--model model.gguf")  # fmt: skip
    serve = partial(started, str(model), str(setting), context, None, lambda text: None)
    engine = f"{_ENGINE} in xllamacpp {package_version('xllamacpp')}"
    return Lane(str(setting), not setting.quantized, model.name,
                file_sha256(model, cache_dir()), engine, serve, mark)  # fmt: skip


@contextmanager
def _reached(server: Server) -> Iterator[Server]:
    yield server
