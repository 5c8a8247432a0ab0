"""Record which options an engine's own parser knows, for tests/engines/known/parsers.

Runs in the engine's environment (only its parser is imported, no GPU is needed), without nybble:

    python bench/engine_parsers.py vllm [FOLDER]
    python bench/engine_parsers.py sglang [FOLDER]
    python bench/engine_parsers.py lmdeploy [FOLDER]
    python bench/engine_parsers.py llama.cpp FOLDER SOURCE BUILD

Writes FOLDER/ENGINE-VERSION.json, or prints it without a folder. A wheel that was only unpacked
serves as well (PYTHONPATH=/unpacked/wheel), next to a CPU torch. llama.cpp has no Python parser:
its common/arg.cpp is read, in the folder SOURCE. trtllm-serve's options were written by hand.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

# One option: how many values it takes ("none", "one", "optional" or "many"), and which.
Options = dict[str, dict[str, Any]]
_TAKES = {None: "one", "?": "optional", "*": "many", "+": "many", argparse.REMAINDER: "many"}


def from_argparse(parser: argparse.ArgumentParser) -> Options:
    """The options of a parser, and its positional argument under the name ""."""
    found: Options = {}
    for action in parser._actions:
        takes = "none" if action.nargs == 0 else _TAKES.get(action.nargs, "many")
        choices = action.choices
        # vLLM moves choices to the metavar where plug-ins may add some (0.33.0 kv_cache_dtype).
        if choices is None and isinstance(action.metavar, list):
            choices = action.metavar
        entry: dict[str, Any] = {"takes": takes}
        if choices is not None:
            # Sorted, as SGLang has sets among them.
            entry["choices"] = sorted(str(choice) for choice in choices)
        for name in action.option_strings or [""]:
            found[name] = entry
    return found


def vllm() -> tuple[str, Options]:
    """Of `vllm serve`."""
    os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
    engine: Any = importlib.import_module("vllm")
    utils: Any = importlib.import_module("vllm.utils.argparse_utils")
    try:  # 0.33.0
        arguments: Any = importlib.import_module("vllm.entrypoints.common.cli_args")
    except ImportError:  # 0.32.0
        arguments = importlib.import_module("vllm.entrypoints.launchers.cli_args")
    parser = arguments.make_arg_parser(utils.FlexibleArgumentParser())
    version = str(engine.__version__).split("+")[0]
    return version, from_argparse(parser)


def sglang() -> tuple[str, Options]:
    """Of `python -m sglang.launch_server`."""
    parser = argparse.ArgumentParser()
    arguments: Any = importlib.import_module("sglang.srt.server_args")
    arguments.ServerArgs.add_cli_args(parser)
    return str(importlib.import_module("sglang.version").__version__), from_argparse(parser)


def lmdeploy() -> tuple[str, Options]:
    """Of `lmdeploy serve api_server`; its policy of the cache has names in place of choices."""
    cli: Any = importlib.import_module("lmdeploy.cli.serve").SubCliServe
    cli.add_parsers()
    options = from_argparse(cli.subparsers.choices["api_server"])
    policies: Any = importlib.import_module("lmdeploy.messages").QuantPolicy
    names = [str(x) for policy in policies for x in (policy.value, policy.name.lower())]
    options["--quant-policy"]["choices"] = sorted([*names, "fp8_e4m3"])
    return str(importlib.import_module("lmdeploy.version").__version__), options


def llama_cpp(source: Path) -> Options:
    """Of `llama-server`, from common/arg.cpp."""
    text = (source / "common/arg.cpp").read_text("utf-8")
    listed = re.search(r"kv_cache_types = \{(.*?)\};", text, re.S)
    types = [name.lower() for name in re.findall(r"GGML_TYPE_(\w+)", listed[1] if listed else "")]
    found: Options = {}
    for block in text.split("add_opt(common_arg(")[1:]:
        examples = re.search(r"set_examples\(\{(.*?)\}\)", block, re.S)
        if examples and not re.search("EXAMPLE_(SERVER|COMMON)", examples[1]):
            continue
        head = block.split("[](")[0]
        names = re.findall(r'"(-[^"\s]*)"', "".join(re.findall(r"\{([^{}]*)\}", head)))
        signature = re.search(r"\[\]\(([^)]*)\)", block)
        after = signature[1].count(",") if signature else 0
        is_bool = bool(signature and re.search(r"\bbool\b", signature[1]))
        entry: dict[str, Any] = {"takes": "none" if is_bool or not after else
                                 "one" if after == 1 else "many"}  # fmt: skip
        hint = re.search(r'\},\s*"[\[{]([\w|,]+)[\]}]"', head)
        if hint:
            entry["choices"] = re.split(r"[|,]", hint[1])
        if '"TYPE"' in head and "get_all_kv_cache_types" in block:
            entry["choices"] = types
        for name in names:
            found.setdefault(name, entry)
    return found


READERS = {"vllm": vllm, "sglang": sglang, "lmdeploy": lmdeploy}


def text_of(engine: str, version: str, how: str, options: Options) -> str:
    """The JSON file, one option a line."""
    lines = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(options.items())]
    head = "".join(f'"{k}": {json.dumps(v)},\n' for k, v in
                   {"engine": engine, "version": version, "how": how}.items())  # fmt: skip
    return "{" + head + '"options": {\n' + ",\n".join(lines) + "\n}}\n"


def main(arguments: list[str]) -> int:
    """Write or print one engine's options."""
    engine, *rest = arguments or [""]
    if engine == "llama.cpp" and len(rest) == 3:
        folder, version = Path(rest[0]), rest[2]
        how = "read from common/arg.cpp"
        options = llama_cpp(Path(rest[1]))
    elif engine in READERS and len(rest) < 2:
        folder = Path(rest[0]) if rest else None
        version, options = READERS[engine]()
        how = "the engine's own parser"
    else:
        print(__doc__, file=sys.stderr)
        return 2
    text = text_of(engine, version, how, options)
    if folder is None:
        print(text, end="")
    else:
        folder.joinpath(f"{engine}-{version}.json").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
