"""`nybble generate`: text from a model in a packed KV cache, on the terminal or as a server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from nybble.cli import console
from nybble.environment import usable_cpus
from nybble.errors import NybbleError

if TYPE_CHECKING:
    from nybble.cli.generate_text import ModelText
    from nybble.formats.setting import KVSetting
    from nybble.runtime.generate import Runtime
    from nybble.runtime.sampling import Sampling

_PATH = click.Path(path_type=Path)
_DEFAULT = "nyb4/nyb4"
_BASE_TOKENS = 256  # a base model seldom ends by itself
_OF_PROMPTS = ("prompt", "system", "max_new_tokens", "prefix", "save_prefix", "form")
_OF_SERVERS = ("host", "port", "api_key_file")
_EXAMPLES = """\b
Examples:
  nybble generate model.gguf --kv q4_0/q4_0 --prompt "Once upon a time"
  nybble generate MODEL                                 chat on a terminal
  nybble generate MODEL < question.txt > answer.txt
  nybble generate MODEL --save-prefix talk.kv < book.txt
  nybble generate MODEL --prefix talk.kv --prompt "And who is Queequeg?"
  nybble generate MODEL --kv q8_0/q4_0 --serve --port 8000
"""


@click.command(epilog=_EXAMPLES)
@click.argument("model", required=False, type=_PATH)
@click.option("--kv", default=_DEFAULT, show_default=True, metavar="K/V", help="KV setting.")
@click.option("--prompt", metavar="TEXT", help="What to answer.  [default: stdin, or a chat]")
@click.option("--system", metavar="TEXT", help="What a conversation begins with.")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=0),
    metavar="N",
    help="Of an answer.  [default: what the context leaves; of a base model 256]",
)
@click.option(
    "--temperature",
    type=float,
    default=0.0,
    show_default=True,
    help="0 takes the likeliest token: the same command gives the same text.",
)
@click.option(
    "--top-p",
    type=float,
    default=1.0,
    show_default=True,
    help="Draw from the smallest set of tokens with this probability.",
)
@click.option("--seed", type=int, help="Of the draws.  [default: another one every time]")
@click.option("--context", type=int, metavar="N", help="Tokens.  [default: the model's]")
@click.option("--latent", is_flag=True, help="One latent for K and V where one follows from the "
              "other (Gemma 4's global layers).")  # fmt: skip
@click.option("--calibration", type=_PATH, help="Statistics of the model.  [default: beside it]")
@click.option("--prefix", type=_PATH, metavar="FILE", help="Go on from a cache saved before.")
@click.option("--save-prefix", type=_PATH, metavar="FILE",
              help="Save the cache, prompt and answer, packed as it is.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda.")
@click.option(
    "--dtype",
    default="auto",
    show_default=True,
    help="Of the weights: float32, bfloat16, float16; auto is float32 on a CPU.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all usable]")
@click.option("--serve", is_flag=True, help="An OpenAI-compatible server, one answer at a time.")
@click.option("--host", default="127.0.0.1", show_default=True,
              help="Address to listen on; another than loopback needs a key.")  # fmt: skip
@click.option("--port", type=int, default=8000, show_default=True, help="To listen on.")
@click.option(
    "--api-key-file",
    type=_PATH,
    metavar="FILE",
    help="Holds the key to demand.  [default: NYBBLE_API_KEY, where it is set]",
)
@click.option("--json", "form", flag_value="json", help="Text and numbers as one object.")
@click.option("--quiet", "-q", is_flag=True, help="No progress and no numbers on stderr.")
@click.pass_context
def generate(ctx: click.Context, /, kv: str, serve: bool, **options: Any) -> int:
    """Generate text with MODEL, its KV cache packed as the KV setting says.

    MODEL is a GGUF, a folder with safetensors, or a hub id in the local cache; the demo model
    without one. An instruct model answers in its chat template, a base model goes on with the
    text. Text goes to stdout; tokens a second and bytes in the cache go to stderr.

    With --serve, requests to /v1/chat/completions and /v1/completions are answered one at a time
    while the others wait; for many users at once, see nybble serve.
    """
    from nybble.formats.setting import parse

    given = [n for n in options if ctx.get_parameter_source(n) is ParameterSource.COMMANDLINE]
    for name in given:
        if name in (_OF_PROMPTS if serve else _OF_SERVERS):
            option = next(o.opts[0] for o in ctx.command.params if o.name == name)
            raise NybbleError(
                "a server takes this from its requests, or not at all" if serve
                else "only a server takes this", seen=option,
                hint=f"leave out {option}" if serve else f"--serve with {option}",
            )  # fmt: skip
    setting = parse(kv)
    if serve:
        return _serve(setting, options)
    if options["system"] is not None and options["prefix"] is not None:
        raise NybbleError("a saved conversation has begun already", seen="--system with --prefix",
                          hint="leave one out")  # fmt: skip
    if (saved := options["save_prefix"]) is not None and not saved.parent.is_dir():
        raise NybbleError("there is no such folder", seen=saved.parent, hint="make it first")
    return _generate(setting, _prompt(options), options)


def _prompt(options: dict[str, Any]) -> str | None:
    """The prompt given, or the whole of stdin; None for a chat on a terminal.

    Raises:
        NybbleError: it is empty, no UTF-8, or a chat is not possible.
    """
    text: str | None = options["prompt"]
    if text is None and sys.stdin.isatty():
        if options["form"] is not None or not sys.stdout.isatty():
            raise NybbleError("a chat needs a terminal and has no form",
                              seen="--json" if options["form"] else "output to a file or a pipe",
                              hint="--prompt TEXT, or the prompt on stdin")  # fmt: skip
        return None
    if text is None:
        try:
            text = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise NybbleError("the prompt on stdin is not UTF-8",
                              seen=f"byte {error.start:,}") from error  # fmt: skip
    if not text.strip():
        raise NybbleError("the prompt is empty", seen=repr(text[:20]),
                          hint='--prompt "Once upon a time", or text on stdin')  # fmt: skip
    return text


def _load(
    setting: KVSetting, options: dict[str, Any], progress: console.BarProgress
) -> tuple[Runtime, ModelText, str, Sampling]:
    from nybble.engines.transformers.packages import transformers

    transformers()  # its packages are refused by name, and kept quiet, before others import them
    import torch

    from nybble.cli.generate_model import Wanted, load_runtime
    from nybble.runtime.sampling import Sampling

    torch.set_num_threads(options["threads"] or usable_cpus())
    sampling = Sampling(options["temperature"], options["top_p"], seed=options["seed"])
    names = ("model", "latent", "context", "device", "dtype", "calibration")
    wanted = Wanted(setting=setting, **{n: options[n] for n in names})
    return *load_runtime(wanted, progress), sampling


def _generate(setting: KVSetting, prompt: str | None, options: dict[str, Any]) -> int:
    from nybble.cli.generate_answer import Teller, chat, once

    quiet: bool = options["quiet"]
    with console.BarProgress(quiet) as progress:
        runtime, text, name, sampling = _load(setting, options, progress)
    try:
        if options["system"] and not text.has_template:
            raise NybbleError("this model has no chat template, so it only goes on with text",
                              seen="--system", hint="put it into --prompt")  # fmt: skip
        limit = options["max_new_tokens"]
        if limit is None and not text.has_template:
            limit = _BASE_TOKENS
        teller = Teller(runtime, text, sampling, limit, options["system"], quiet)
        if options["prefix"] is not None:
            teller.session = runtime.load(options["prefix"])
        if not quiet:
            click.echo(f"{name}, KV {runtime.kv}, {runtime.context:,} tokens of context", err=True)
        code = chat(teller) if prompt is None else once(teller, prompt, options["form"])
        if options["save_prefix"] is not None:
            teller.session.save(options["save_prefix"])
            if not quiet:
                click.echo(f"saved {len(teller.session.tokens):,} tokens: "
                           f"{options['save_prefix']}", err=True)  # fmt: skip
        return code
    finally:
        text.close()


def _serve(setting: KVSetting, options: dict[str, Any]) -> int:
    from nybble.cli.generate_server import address, run

    key = address(options["host"], options["port"], options["api_key_file"])
    with console.BarProgress(options["quiet"]) as progress:
        runtime, text, name, sampling = _load(setting, options, progress)
    try:
        run(runtime, text, name, sampling, key, options)
    finally:
        text.close()
    return 0
