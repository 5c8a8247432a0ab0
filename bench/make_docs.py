"""Remake docs/commands/*.md from the commands' own help, and the table in docs/formats.md.

    python bench/make_docs.py

tests/test_docs.py fails when they are not what this script would write.
"""

from __future__ import annotations

from pathlib import Path

import click

from nybble.cli.main import cli
from nybble.formats import KV_TYPES
from nybble.scoring.corpora import CATEGORIES

DOCS = Path(__file__).parents[1] / "docs"


def pages() -> dict[str, str]:
    """File name under docs/ -> text, for every generated page."""
    found: dict[str, str] = {}
    for name, command in sorted(cli.commands.items()):
        context = click.Context(command, info_name=f"nybble {name}", max_content_width=88)
        context.terminal_width = 88
        found[f"commands/{name}.md"] = f"# nybble {name}\n\n```\n{command.get_help(context)}\n```\n"
    lines = [
        "# KV types",
        "",
        "| KV type | bits an element | layout | engines |",
        "|---|--:|---|---|",
    ]
    lines += [
        f"| {t.name} | {t.bits:g} | {t.layout} | {', '.join(t.engines)} |"
        for t in KV_TYPES.values()
    ]
    found["formats.md"] = "\n".join(lines) + "\n"
    lines = ["# Corpora", "", "| category | what | source | licence |", "|---|---|---|---|"]
    lines += [f"| {c.name} | {c.title} | {c.source} | {c.licence} |" for c in CATEGORIES.values()]
    found["corpora.md"] = "\n".join(lines) + "\n"
    return found


def main() -> None:
    """Write every page."""
    for name, text in pages().items():
        path = DOCS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
