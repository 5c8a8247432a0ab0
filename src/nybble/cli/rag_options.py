"""Options that the commands of `nybble rag` which answer have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from nybble.errors import NybbleError

_PATH = click.Path(path_type=Path)
_ANSWERING = (
    click.option("--model", metavar="GGUF", help="Served here by llama.cpp."),
    click.option("--kv", default="auto", show_default=True, metavar="K/V",
                 help="KV setting of --model, as in nybble serve."),
    click.option("--context", type=int, metavar="TOKENS",
                 help="Of the model.  [default: the server's; of --model what fits here, up to "
                 "32768]"),
    click.option("--url", metavar="URL",
                 help="A running OpenAI-compatible server, not --model."),
    click.option("--served-model", default="", metavar="NAME",
                 help="Its name on that server.  [default: the first]"),
    click.option("--slots", type=_PATH, metavar="FOLDER",
                 help="Where the llama.cpp server of --url saves slots, for prefixes."),
    click.option("--frame", default="auto", show_default=True,
                 help="chat (the model's template), plain (a base model), auto."),
    click.option("--k", type=int, default=8, show_default=True, help="Passages to look for."),
    click.option("--mode", default="hybrid", show_default=True,
                 help="Retrieval: hybrid, dense or lexical."),
    click.option("--answer-tokens", type=int, default=512, show_default=True, metavar="TOKENS",
                 help="An answer's longest."),
    click.option("--temperature", type=float, default=0.0, show_default=True,
                 help="0 takes the likeliest token."),
    click.option("--keep-prefixes", type=float, default=4.0, show_default=True, metavar="GIB",
                 help="Files of contexts; the longest unused go first."),
    click.option("--embedding-model", default="", metavar="NAME",
                 help="Of an embedding server."),
)  # fmt: skip


def answering(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a model that answers, and of what it is shown."""
    for option in reversed(_ANSWERING):
        command = option(command)
    return command


def one_server(options: dict[str, Any]) -> None:
    """Refuse both a model and a server, and neither.

    Raises:
        NybbleError: says which.
    """
    if bool(options["model"]) == bool(options["url"]):
        raise NybbleError(
            "one server answers", seen="--model and --url" if options["url"] else "neither",
            allowed="--model GGUF, served here, or --url of one that runs",
            hint="--model model.gguf",
        )  # fmt: skip
