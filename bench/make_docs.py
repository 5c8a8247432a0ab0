"""Remake docs/commands/*.md from the commands' own help, and the table in docs/formats.md.

    python bench/make_docs.py

tests/test_docs.py fails when they are not what this script would write.
"""

from __future__ import annotations

from pathlib import Path

import click

from nybble.cli.formats import HELP
from nybble.cli.main import COMMANDS, command
from nybble.engines.known.registry import engines
from nybble.formats import ALIASES, KV_TYPES
from nybble.formats.reads import Reads
from nybble.scoring.corpora import CATEGORIES
from nybble.scoring.tasks.registry import TASKS
from nybble.serving.matrix import choice_lines, engine_line, notes

DOCS = Path(__file__).parents[1] / "docs"


_OWN = """\
`--tasks FILE.jsonl`, alone or beside names (`--tasks needle,mine.jsonl`), asks what a file holds, a
JSON object a line:

```json
{"context": "...", "question": "...", "answer": "...", "wrong": ["...", "..."]}
```

`answers` are more right ones, `task` names a row of the report (lower case, `own` if it is left
out), `lead` is how the answer begins ("The answer is"). Lines with one context are read once. Where
`wrong` is left out, answers of other lines stand in. Contexts are asked at their own length, up to
the longest `--context`; longer ones are left out and counted. `nybble rag eval --write-tasks
FILE.jsonl` makes such a file of your documents ([rag.md](rag.md))."""


def pages() -> dict[str, str]:
    """File name under docs/ -> text, for every generated page."""
    found: dict[str, str] = {}
    for name in sorted(COMMANDS):
        found[f"commands/{name}.md"] = _help(command(name), f"nybble {name}", "#")
    lines = [
        "# KV types",
        "",
        "Bits are at a head size of 128, scales included. llama.cpp runs its own types itself;",
        "every type can be simulated with `--engine transformers`. Reads: which keys a query still",
        "sees unquantized (method.md).",
        "",
        "| KV type | bits | sides | layout | reads | engines | source |",
        "|---|--:|---|---|---|---|---|",
    ]
    lines += [
        f"| {t.name} | {t.bits:g} | {t.sides} | {t.layout} | {_reads(t.reads)} | "
        f"{', '.join(t.engines) or '-'} | {t.source} |"
        for t in KV_TYPES.values()
    ]
    lines += ["", "## Short names", ""]
    lines += [f"- `{name}` is `{meaning}`" for name, meaning in ALIASES.items()]
    lines += ["", "## Settings", "", "```", HELP.strip(), "```"]
    found["formats.md"] = "\n".join(lines) + "\n"
    found["engines.md"] = _engines()
    lines = ["# Corpora", "", "| category | what | source | licence |", "|---|---|---|---|"]
    lines += [f"| {c.name} | {c.title} | {c.source} | {c.licence} |" for c in CATEGORIES.values()]
    found["corpora.md"] = "\n".join(lines) + "\n"
    lines = [
        "# Long-context tasks",
        "",
        "What `nybble measure --tasks` asks ([long-context.md](long-context.md)). All text is made",
        "from a seed.",
        "",
        "| task | what | in the manner of |",
        "|---|---|---|",
    ]
    lines += [f"| {t.name} | {t.title} | {t.source} |" for t in TASKS.values()]
    lines += ["", "## Your own", "", _OWN]
    found["tasks.md"] = "\n".join(lines) + "\n"
    return found


def _help(found: click.Command, name: str, mark: str) -> str:
    context = click.Context(found, info_name=name, max_content_width=88)
    context.terminal_width = 88
    text = f"{mark} {name}\n\n```\n{context.get_help()}\n```\n"
    if isinstance(found, click.Group):
        for part in found.list_commands(context):
            inner = found.get_command(context, part)
            assert inner is not None
            text += "\n" + _help(inner, f"{name} {part}", mark + "#")
    return text


def _engines() -> str:
    lines = [
        "# What engines take, refuse and fake",
        "",
        "Read in their sources; version and date stand with each. `nybble engines NAME --model",
        "M --gpu CARD` holds it against a model and a card, `nybble watch` tells what came after,",
        "`nybble engines --probe` what is installed here.",
        "",
        "| engine | read in | flag | KV types | K and V | quantized K and V are read | told by |",
        "|---|---|---|---|---|---|---|",
    ]
    every = list(engines())
    for line in map(engine_line, every):
        cells = (f"[{line.name}](#{_anchor(line.name)})", line.version, f"`{line.flags}`",
                 line.types, line.sides, line.read, line.told)  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    for engine in every:
        about = f"{engine.version}, read {engine.read_on}. {_sentence(engine.limits)}"
        lines += ["", f"## {engine.name}", "", about, ""]
        lines += [
            "| value | KV setting | bits | read | needs | source |",
            "|---|---|--:|---|---|---|",
        ]
        for c in choice_lines(engine, None, None, None):
            bits = "" if c.bits is None else f"{c.bits:.4g}"
            lines.append(f"| `{c.name}` | {c.kv} | {bits} | {c.read} | {c.needs} | {c.source} |")
        lines += ["", *(f"- {text}" for text in notes(engine, None, None, None))]
    return "\n".join(lines) + "\n"


def _anchor(name: str) -> str:
    return name.replace(".", "")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "." if text else ""


def _reads(reads: Reads) -> str:
    return {"all": "stored", "chunk": "current chunk raw"}.get(
        reads.rule, f"last {reads.tokens} raw"
    )


def main() -> None:
    """Write every page."""
    for name, text in pages().items():
        path = DOCS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
