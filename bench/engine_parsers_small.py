"""Record the options of engines' own parsers: mlx_lm.server, transformers serve.

    python bench/engine_parsers_small.py mlx_lm-0.32.2-py3-none-any.whl

Writes tests/engines/known/parsers/ENGINE-VERSION.json: per option whether it takes a value, and
which it allows. mlx-lm's parser is run from its wheel without mlx: the statements of main() up to
parse_args are all it needs. transformers is the installed one. Tests hold nybble's launches against
these files.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "tests/engines/known/parsers"
Options = dict[str, dict[str, Any]]


def of_argparse(parser: argparse.ArgumentParser) -> Options:
    """Options of an argparse parser; help is left out."""
    found: Options = {}
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        choices = None if action.choices is None else [str(c) for c in action.choices]
        for name in action.option_strings:
            found[name] = {"choices": choices, "value": action.nargs != 0}
    return found


def mlx_lm(wheel: Path) -> tuple[str, Options]:
    """Version and options of mlx_lm.server in a wheel.

    The parser refers to two names of its module: a number and a function that reads sizes.
    """
    with zipfile.ZipFile(wheel) as archive:
        source = archive.read("mlx_lm/server.py").decode()
        info = archive.read("mlx_lm/_version.py").decode()
    version = next(
        str(ast.literal_eval(node.value))
        for node in ast.parse(info).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__version__"
    )
    main = next(
        node for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == "main"
    )  # fmt: skip
    kept: list[ast.stmt] = []
    for statement in main.body:
        if "parse_args" in ast.unparse(statement):
            break
        kept.append(statement)
    names: dict[str, Any] = {
        "argparse": argparse, "json": json, "_parse_size": str, "DEFAULT_QUANTIZED_KV_START": 5000,
    }  # fmt: skip
    exec(compile(ast.Module(kept, []), "mlx_lm/server.py", "exec"), names)
    return version, of_argparse(names["parser"])


def transformers_serve() -> tuple[str, Options]:
    """Version and options of the installed `transformers serve`."""
    import transformers
    from transformers.cli.transformers import app

    found: Options = {}
    for parameter in app.commands["serve"].params:
        if parameter.param_type_name != "option" or parameter.name == "help":
            continue
        choices = getattr(parameter.type, "choices", None)
        allowed = None if choices is None else [getattr(c, "value", str(c)) for c in choices]
        for name in (*parameter.opts, *parameter.secondary_opts):
            found[name] = {"choices": allowed, "value": not parameter.is_flag}
    return transformers.__version__, found


def written(engine: str, version: str, options: Options) -> Path:
    """Save one engine's options; returns the file."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{engine}-{version}.json"
    lines = [f" {json.dumps(name)}: {json.dumps(options[name])}" for name in sorted(options)]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return path


def main() -> None:
    """Record both."""
    print(written("mlx-lm", *mlx_lm(Path(sys.argv[1]))))
    print(written("transformers", *transformers_serve()))


if __name__ == "__main__":
    main()
