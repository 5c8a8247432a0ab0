"""Options that `nybble config` and `nybble serve` share: the deployment."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nybble.errors import NybbleError

if TYPE_CHECKING:
    from nybble.serving.deploy import DeployRequest

_PATH = click.Path(path_type=Path)
_AUTO = "auto"
_OPTIONS = (
    click.option("--engine", help="Name.  [default: llama.cpp for a GGUF, else vllm]"),
    click.option("--kv", default=_AUTO, show_default=True, metavar="K/V",
                 help="KV setting; auto takes the smallest measured within --max-kld."),
    click.option("--max-kld", type=float, metavar="KLD",
                 help="What auto may cost, mean KLD in nat.  [default: 0.02]"),
    click.option("--results", multiple=True, type=_PATH, metavar="FOLDER",
                 help="Runs of nybble measure.  [default: ./nybble-results]"),
    click.option("--context", type=int, metavar="TOKENS",
                 help="Of one sequence.  [default: what fits, up to 32768]"),
    click.option("--users", type=int, default=1, show_default=True,
                 help="Sequences held at once."),
    click.option("--file", help="Which published file of a known model, e.g. Q4_K_M."),
    click.option("--gpu", metavar="CARD", help="A card, NxCARD for several, or 24GiB@936GBps."),
    click.option("--cards", "count", type=int, help="How many."),
    click.option("--memory", "memory_gib", type=float, metavar="GIB", help="Of one card."),
    click.option("--reserve", "reserve_gib", type=float, metavar="GIB",
                 help="Left free on each card.  [default: 0.5; 4 of shared memory]"),
    click.option("--host", default="127.0.0.1", show_default=True,
                 help="Address to listen on; another than loopback needs --api-key."),
    click.option("--port", type=int, default=8080, show_default=True, help="To listen on."),
    click.option("--api-key", "keyed", is_flag=True,
                 help="Demand the key in the variable NYBBLE_API_KEY."),
    click.option("--name", help="Served under this name.  [default: the file's or the hub's]"),
)  # fmt: skip


def deployment(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a deployment."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def request(model: str, options: dict[str, Any], *, here: bool) -> DeployRequest:
    """The request of these options; what belongs to it is taken out of `options`.

    Args:
        model: as given.
        options: of the command.
        here: plan for this machine's cards where none is named.

    Raises:
        NybbleError: options that contradict each other.
    """
    from nybble.formats.setting import parse
    from nybble.planning.request import CardChoice
    from nybble.serving.deploy import DeployRequest

    kv = options.pop("kv")
    if kv != _AUTO and options["max_kld"] is not None:
        raise NybbleError("--max-kld chooses the KV setting", seen=f"--kv {kv} --max-kld "
                          f"{options['max_kld']:g}", allowed="--kv auto with --max-kld",
                          hint="leave one out")  # fmt: skip
    name = options.pop("gpu")
    choice = CardChoice(
        name=name, here=here and name is None,
        **{n: options.pop(n) for n in ("count", "memory_gib", "reserve_gib")},
    )  # fmt: skip
    names = ("engine", "max_kld", "results", "context", "users", "file", "host", "port", "keyed",
             "name")  # fmt: skip
    given = {n: options.pop(n) for n in names}
    return DeployRequest(
        model=model, setting=None if kv == _AUTO else parse(kv), cards=choice, **given
    )


def key() -> str | None:
    """The API key of the environment.

    Raises:
        NybbleError: it is set and empty.
    """
    from nybble.engines.known.base import KEY

    value = os.environ.get(KEY)
    if value is not None and not value.strip():
        raise NybbleError("the API key is empty", seen=f"{KEY}=", allowed="at least one character",
                          hint=f"export {KEY}=$(openssl rand -hex 24)")  # fmt: skip
    return value
