"""`nybble rag eval`: does retrieval find it, and does the cache type change the answers?"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nybble.cli import console
from nybble.cli.rag_eval_lanes import DEFAULT_KV
from nybble.environment import command_line
from nybble.errors import NybbleError

if TYPE_CHECKING:
    from nybble.rag.eval_answers import Lane
    from nybble.rag.index import Index
    from nybble.rag.questions import Question
    from nybble.results.rag import RagRun

_PATH = click.Path(path_type=Path)
_RESULTS = Path("nybble-results")
_GENERATED = 50
_CONTEXT = 4096
_KEYS = ("NYBBLE_API_KEY", "OPENAI_API_KEY")
_EXAMPLES = """\b
Examples:
  nybble rag eval                                      retrieval only, 50 generated questions
  nybble rag eval --model model.gguf                   and answers at f16, q8_0 and q4_0
  nybble rag eval --model model.gguf --hardened hard.gguf --generate 200
  nybble rag eval --questions ours.jsonl --model model.gguf --kv f16/f16,bf16/bf16,q4_0/q4_0
  nybble rag eval --write-tasks ours.jsonl             for nybble measure --tasks ours.jsonl
  nybble rag eval --url f16/f16=http://127.0.0.1:8000 --url fp8_e4m3/fp8_e4m3=http://127.0.0.1:8001

\b
A line of --questions:
  {"question": "...", "answer": "...", "source": "notes.md#Heading", "answers": ["...", "..."]}
"""


@click.command("eval", epilog=_EXAMPLES)
@click.option("--index", "place", type=_PATH, default=Path(".nybble-rag"), show_default=True,
              metavar="PATH", help="The index's folder.")  # fmt: skip
@click.option("--embedding", metavar="NAME",
              help="The one of the index, named again: only for a server elsewhere.")  # fmt: skip
@click.option("--embedding-model", default="", metavar="NAME", help="Of an embedding server.")
@click.option("--questions", type=_PATH, metavar="FILE.jsonl", help="Questions of your own.")
@click.option("--generate", "count", type=int, metavar="N",
              help=f"Make N questions of the documents.  [default: {_GENERATED}; 0 with "
              "--questions]")  # fmt: skip
@click.option("--model", type=_PATH, metavar="GGUF", help="Served here in each setting of --kv.")
@click.option("--kv", metavar="K/V[,K/V]",
              help=f"KV settings, one in 16 bits.  [default: {DEFAULT_KV}]")  # fmt: skip
@click.option("--hardened", type=_PATH, metavar="GGUF",
              help="The same model hardened, as one more row in q4_0/q4_0.")  # fmt: skip
@click.option("--url", "urls", multiple=True, metavar="SETTING=URL",
              help="A running server with this setting, in place of --model; one is 16-bit.",
              )  # fmt: skip
@click.option("--served-model", default="", metavar="NAME",
              help="Its name on those servers.  [default: their first]")  # fmt: skip
@click.option("--api-key-env", metavar="NAME",
              help=f"Variable with their key.  [default: {', '.join(_KEYS)}]")  # fmt: skip
@click.option("--k", type=int, default=8, show_default=True,
              help="Passages that an answer may rest on.")  # fmt: skip
@click.option("--mode", default="hybrid", show_default=True,
              help="Retrieval for answers: hybrid, dense or lexical.")  # fmt: skip
@click.option("--context", type=int, default=_CONTEXT, show_default=True, metavar="TOKENS",
              help="Of the servers.")  # fmt: skip
@click.option("--answer-tokens", type=int, default=128, show_default=True, metavar="TOKENS",
              help="An answer's longest.")  # fmt: skip
@click.option("--timeout", type=float, default=600.0, show_default=True, metavar="SECONDS",
              help="Of silence after which a server counts as gone.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True,
              help="Of generated questions and of the bootstrap.")  # fmt: skip
@click.option("--write-tasks", "tasks", type=_PATH, metavar="FILE.jsonl",
              help="Write the questions with their sources and wrong options for nybble measure "
              "--tasks, and ask nothing.")  # fmt: skip
@click.option("--out", type=_PATH, metavar="FOLDER",
              help="Run folder.  [default: one in ./nybble-results]")  # fmt: skip
@click.option("--fresh", is_flag=True, help="Ask again what has been answered already.")
@click.option("--json", "form", flag_value="json", help="The whole record on stdout.")
@click.option("--csv", "form", flag_value="csv", help="One line per number on stdout.")
@click.option("--markdown", "form", flag_value="markdown", help="Tables to paste on stdout.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
def eval(
    place: Path,
    questions: Path | None,
    count: int | None,
    tasks: Path | None,
    out: Path | None,
    form: str | None,
    quiet: bool,
    **options: Any,
) -> int:
    """Ask the same questions at each KV setting, and compare the answers.

    Recall is measured for hybrid, dense and lexical retrieval. With --model or --url every
    question is then answered over the same passages at temperature 0, from a 16-bit cache and from
    the others; a lost answer is one that only the 16-bit cache had right. The same
    command again continues where it stopped.
    """
    from nybble.results.store import check_folder

    _check(options | {"tasks": tasks})
    if tasks is not None:
        return _write_tasks(place, questions, count, tasks, quiet, options)
    check_folder(out or _RESULTS)
    try:
        run, report = _run(place, questions, count, out, quiet, options)
    except KeyboardInterrupt:
        click.echo("interrupted; answers are kept, the same command continues", err=True)
        return 130
    _show(run, report, form)
    return _failed(run)


def _run(
    place: Path, questions: Path | None, count: int | None, out: Path | None, quiet: bool,
    options: dict[str, Any],
) -> tuple[RagRun, Path]:  # fmt: skip
    from nybble.rag.evaluate import EvalRequest, check_lanes, evaluate
    from nybble.rag.index import open_index

    with console.BarProgress(quiet) as progress:
        lanes = _lanes(options)
        check_lanes(lanes)
        named = {n: options[n] for n in ("embedding", "embedding_model")}
        with open_index(place, **named) as index:
            progress.stage("loading the embedding model")
            index.warm()
            progress.stage("reading the questions")
            asked, origin = _questions(index, questions, count, options["seed"])
            about, title = _about(index)
            kept = ("k", "mode", "answer_tokens", "context", "timeout", "seed", "fresh")
            folder = out or _folder(title, asked, lanes)
            request = EvalRequest(
                tuple(asked), origin, title, out=folder, about=about, command=command_line(),
                **{n: options[n] for n in kept},
            )  # fmt: skip
            run = evaluate(index, request, lanes, progress=progress)
        progress.stage("writing the report")
        return run, _write(run, folder)


def _write_tasks(
    place: Path, questions: Path | None, count: int | None, path: Path, quiet: bool,
    options: dict[str, Any],
) -> int:  # fmt: skip
    from nybble.rag.index import open_index
    from nybble.rag.task_file import write_tasks
    from nybble.scoring.tasks.own import SUFFIX

    if path.suffix != SUFFIX:
        raise NybbleError("tasks are written into a file of JSON lines", seen=path,
                          hint=f"--write-tasks {path.with_suffix(SUFFIX)}")  # fmt: skip
    with (
        console.BarProgress(quiet) as progress,
        open_index(place, **{n: options[n] for n in ("embedding", "embedding_model")}) as index,
    ):
        asked, _ = _questions(index, questions, count, options["seed"])
        done = write_tasks(index, asked, options["k"], options["mode"], options["seed"], path,
                           progress)  # fmt: skip
    click.echo(f"{done.asked} questions in {path}; left out: {done.unfound} whose sources were not "
               f"found, {done.unanswered} without an answer or wrong options\n"
               f"next: nybble measure MODEL --tasks {path} --context 4096")  # fmt: skip
    return 0


def _check(options: dict[str, Any]) -> None:
    """Options out of range or that contradict each other, before anything is loaded."""
    from nybble.rag.answers import Options

    Options(**{n: options[n] for n in ("k", "mode", "context", "answer_tokens", "timeout")})
    if options["tasks"] is not None and (options["urls"] or options["model"] is not None):
        raise NybbleError("tasks are asked by nybble measure",
                          seen="--model or --url with --write-tasks",
                          hint="leave them out")  # fmt: skip
    if options["urls"]:
        named = {"--model": options["model"], "--hardened": options["hardened"],
                 "--kv": options["kv"]}  # fmt: skip
        if given := [name for name, value in named.items() if value is not None]:
            raise NybbleError("running servers have their models and settings",
                              seen=f"{', '.join(given)} with --url",
                              hint="leave it out")  # fmt: skip
    elif options["model"] is None:
        named = {"--kv": options["kv"], "--hardened": options["hardened"]}
        if given := [name for name, value in named.items() if value is not None]:
            raise NybbleError("no model answers", seen=f"{', '.join(given)} without --model",
                              hint="--model model.gguf")  # fmt: skip


def _lanes(options: dict[str, Any]) -> list[Lane]:
    from nybble.cli.rag_eval_lanes import local_lanes, url_lanes

    if options["urls"]:
        name = options["api_key_env"]
        known = (name,) if name else _KEYS
        key = next((os.environ[n] for n in known if os.environ.get(n)), None)
        if name and key is None:
            raise NybbleError("the variable with the API key is not set", seen=name,
                              hint=f"export {name}=...")  # fmt: skip
        return url_lanes(options["urls"], options["served_model"], key)
    if options["model"] is None:
        return []
    return local_lanes(options["model"], options["kv"] or DEFAULT_KV, options["hardened"],
                       options["context"])  # fmt: skip


def _questions(
    index: Index, file: Path | None, count: int | None, seed: int
) -> tuple[list[Question], str]:
    """The user's own questions first, then generated ones."""
    from nybble.rag.question_file import digest, read_questions
    from nybble.rag.questions import generate

    found: list[Question] = []
    origin = []
    if file is not None:
        paths = {p: d.path for d in index.documents() for p in (d.path, *d.copies)}
        found += read_questions(file, paths)
        origin.append(f"{len(found)} of {file.name} (sha256 {digest(file)})")
    wanted = (0 if file is not None else _GENERATED) if count is None else count
    if wanted or file is None:
        made = generate(index, wanted, seed)
        found += made
        short = f" of {wanted} asked for" if len(made) < wanted else ""
        origin.append(f"{len(made)} generated{short}, seed {seed}")
    return found, "; ".join(origin)


def _about(index: Index) -> tuple[dict[str, Any], str]:
    about = index.about()
    title = Path(about.folder).name or "documents"
    names = ("documents", "passages", "embedding", "embedding_model", "chunk_tokens", "overlap")
    return {"folder": title, **{n: getattr(about, n) for n in names}}, title


def _folder(title: str, questions: list[Question], lanes: list[Lane]) -> Path:
    """One folder for a corpus, its questions and the reference's model; settings add to it."""
    from nybble.results.store import content_key

    key = content_key([title, [q.text for q in questions], [lane.model for lane in lanes[:1]]])
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", title)[:60]
    return _RESULTS / f"rag-{name}-{key[:8]}"


def _write(run: RagRun, folder: Path) -> Path:
    from nybble.report.rag_html import rag_html
    from nybble.report.rag_table import markdown
    from nybble.results.store import write_text

    write_text(folder / "report.md", markdown(run))
    return write_text(folder / "report.html", rag_html(run))


def _show(run: RagRun, report: Path, form: str | None) -> None:
    from nybble.report import rag_table as table
    from nybble.results.rag import to_json

    texts = {"json": to_json, "csv": table.csv_text, "markdown": table.markdown}
    if form:
        click.echo(texts[form](run).rstrip("\n"))
        return
    out = console.out()
    out.print(table.rich_retrieval(run))
    out.print()
    if answers := table.rich_answers(run):
        out.print(answers)
        out.print()
    out.print(run.said, style="bold", markup=False, highlight=False)
    if run.worded:
        out.print(run.worded, markup=False, highlight=False)
    for text in table.notes(run):
        out.print(f"note: {text}", markup=False, highlight=False)
    if not run.rows:
        click.echo("answers: --model model.gguf asks the same questions at each KV setting")
    click.echo(f"\nreport: {report}")


def _failed(run: RagRun) -> int:
    code = 0
    for row in run.rows:
        if row.status == "failed":
            click.echo(f"failed: {row.setting} after {row.n_questions} answers: {row.error}",
                       err=True)  # fmt: skip
            code = 1
    return code
