"""`nybble watch`: releases newer than what was read of the engines, and what they say of KV."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from nybble.cli import console

if TYPE_CHECKING:
    from nybble.watch.feeds import Heard
    from nybble.watch.records import EngineDrift, Source, Watch

_SHOWN = 8  # sentences of notes of one engine; --json has all
_EXAMPLES = """\b
Examples:
  nybble watch
  nybble watch vllm sglang --patch drift.patch && git apply --check drift.patch
  nybble watch --json --offline
  nybble watch --index-url 'https://mirror.example/pypi/{package}/json'
"""


@click.command(epilog=_EXAMPLES)
@click.argument("engines", nargs=-1, metavar="[ENGINE]...")
@click.option("--patch", "patch_file", metavar="FILE",
              type=click.Path(path_type=Path, dir_okay=False),
              help="Write what moves the data to the newest versions, for git apply.")  # fmt: skip
@click.option("--index-url", metavar="URL", help="Of a package, with {package} in it.  "
              "[default: PyPI's JSON; or $NYBBLE_INDEX_URL]")  # fmt: skip
@click.option("--releases-url", metavar="URL", help="Of a release feed (Atom), with {repository} "
              "in it.  [default: GitHub's; or $NYBBLE_RELEASES_URL]")  # fmt: skip
@click.option("--offline", is_flag=True, help="Ask nobody: use the copies kept from before.")
@click.option("--timeout", type=float, default=20.0, show_default=True, metavar="S",
              help="Seconds for each address.")  # fmt: skip
@click.option("--json", "form", flag_value="json", help="The whole record on stdout.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
def watch(
    engines: tuple[str, ...],
    patch_file: Path | None,
    index_url: str | None,
    releases_url: str | None,
    offline: bool,
    timeout: float,
    form: str | None,
    quiet: bool,
) -> int:
    """Compare what was read of the engines with their newest releases.

    Asks the package index and the projects' release feeds, and prints what notes of newer releases
    say about KV caches and which entries of nybble's data may be outdated. Exit code 1 on drift.
    """
    from nybble.engines.known import registry
    from nybble.watch import Addresses, Limits, look

    names = dict.fromkeys(name.strip().lower() for name in engines) or registry.NAMES
    known = [registry.engine(name) for name in names]
    if not engines:  # nobody else releases nybble's own runtime
        known = [one for one in known if one.packages or one.repository]
    with console.BarProgress(quiet) as progress:
        progress.stage(f"{'reading copies' if offline else 'asking'} about {len(known)} engines")

        def said(heard: Heard) -> None:
            if heard.source.why:
                progress.note(_told(heard.source))

        found = look(known, Addresses.chosen(index_url, releases_url),
                     limits=Limits(total=timeout), offline=offline, said=said)  # fmt: skip
    if patch_file is not None:
        _write(found, patch_file)
    if form == "json":
        import json

        click.echo(json.dumps(found.as_dict(), indent=1))
    else:
        _show(found)
    return 1 if found.drifted else 0


def _write(found: Watch, path: Path) -> None:
    from nybble.errors import NybbleError

    if not found.patch:
        click.echo(f"nothing to patch: {path} is not written", err=True)
        return
    try:
        path.write_text(found.patch, encoding="utf-8", newline="")
    except OSError as error:
        raise NybbleError("the patch cannot be written", seen=f"{path}: {error.strerror}",
                          hint="--patch FILE in a folder that exists") from error  # fmt: skip
    click.echo(f"patch: {path} (git apply {path}, once the releases are read)", err=True)


def _show(found: Watch) -> None:
    out = console.out()
    table = Table()
    for name in ("engine", "read", "read on", "newest", "published", "newer", "KV"):
        table.add_column(name, justify="right" if name in ("newer", "KV") else "left")
    for engine in found.engines:
        newer = sum(not r.prerelease for r in engine.releases)
        table.add_row(engine.engine, engine.read, engine.read_on, engine.newest or "unknown",
                      engine.published, str(newer), str(len(engine.lines)))  # fmt: skip
    out.print(table)
    for line in _unheard([s for engine in found.engines for s in engine.sources]):
        out.print(line, markup=False, highlight=False)
    for engine in found.engines:
        if engine.drifted or engine.lines:
            out.print()
            for line in _about(engine):
                out.print(line, markup=False, highlight=False)
    if found.drifted:
        out.print("\nThe patch (--patch FILE) only moves versions and dates: read first.",
                  markup=False, highlight=False)  # fmt: skip


def _unheard(sources: list[Source]) -> list[str]:
    """What the table does not rest on, or on old copies of."""
    found = []
    for kind, what in (("index", "package index"), ("releases", "release feed")):
        cached = [s for s in sources if s.kind == kind and s.state == "cached"]
        if cached:
            oldest = _age(max(s.age or 0.0 for s in cached))
            names = ", ".join(dict.fromkeys(s.subject for s in cached))
            found.append(f"{what}, copies up to {oldest} old: {names}")
        missing = dict.fromkeys(s.subject for s in sources
                                if s.kind == kind and s.state == "missing")  # fmt: skip
        if missing:
            found.append(f"{what}, nothing known: {', '.join(missing)}")
    return found


def _about(engine: EngineDrift) -> list[str]:
    heads = [r for r in engine.releases if not r.prerelease]
    until = f"newest is {engine.newest}" if engine.drifted else "newer candidates only"
    found = [f"{engine.engine}: read up to {engine.read} ({engine.read_on}), {until}; "
             f"{len(heads)} newer release{'' if len(heads) == 1 else 's'}"]  # fmt: skip
    for line in engine.lines[:_SHOWN]:
        found.append(f"  {line.release} [{', '.join(line.topics)}] {line.text}")
    if (more := len(engine.lines) - _SHOWN) > 0:
        found.append(f"  and {more} more lines on KV caches (--json has all)")
    found += [f"  to read: {text}" for text in engine.to_read]
    found += [f"  {package} has a numbering of its own: newest {version}"
              for package, version in engine.others]  # fmt: skip
    return found


def _told(source: Source) -> str:
    used = "nothing is known of it"
    if source.state == "cached":
        used = f"a copy of {_age(source.age)} ago is used"
    elif source.state != "missing":
        used = "its answer is used"
    return f"{source.kind} of {source.subject}: {source.why}; {used} ({source.address})"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
