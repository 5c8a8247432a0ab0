"""Looks at the engines installed on this machine, and compares them with the data here.

Nothing of an engine is imported into this process. Python packages are read by a child in their
own environment (`probe_child.py`), programs are asked for --version and --help. What comes back is
data of somebody else's: it is checked, cut and cleaned before it is shown.

Where programs print what: llama.cpp b11549, common/arg.cpp and common/build-info.cpp.in. Ollama
asks a running server for its version; without one it prints "client version is", its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import Version

from nybble.engines.known import probe_child
from nybble.engines.known.base import Engine, holds, release
from nybble.engines.known.carried import TWINS, carried, is_build, written
from nybble.engines.known.probe_places import Reading, reading
from nybble.engines.known.probe_run import plain, printed
from nybble.engines.known.registry import engines as known_engines
from nybble.errors import NybbleError

_CHILD_SECONDS = 60.0
_PROGRAM_SECONDS = 30.0  # a llama-server with CUDA opens the driver first
_MAX_VALUES = 200
# Python programs on PATH: the first line of each names the interpreter of its environment.
_SCRIPTS = ("vllm", "sglang", "lmdeploy", "trtllm-serve", "mlx_lm.server", "transformers")
_SHEBANG = re.compile(r"#!\s*(/\S*python[\w.]*)\s*$", re.MULTILINE)
_BY_ENV = re.compile(r"#!\s*/\S*/env\s+(python[\w.]*)\s*$", re.MULTILINE)
# What pip writes where the path is too long for a first line, or has spaces.
_BY_SHELL = re.compile(r"^'''exec' \"?(/[^\"\n]*?python[\w.]*)\"? ", re.MULTILINE)
_LLAMA_BUILD = re.compile(r"^version: (?:.*\(build ([0-9]+)[,)]|([0-9]+) \()", re.MULTILINE)
_ALLOWED = re.compile(r"allowed values:(.*?)(?:\(default|\Z)", re.DOTALL)
_OLLAMA = (re.compile(r"client version is ([\w.+-]{1,40})"),
           re.compile(r"ollama version is ([\w.+-]{1,40})"))  # fmt: skip


@dataclass(frozen=True)
class Probed:
    """One engine as it is installed, against our data of that version.

    Attributes:
        engine: name.
        version: in the engine's own numbers; None where the installation does not tell it.
        installed: what was found, with its own version: "xllamacpp 2026.10.11549", "llama-server".
        where: path.
        found: values of its KV flag.
        missing: found, but not in our data.
        gone: in our data for this version, but not found.
        read: version our data was read up to.
        newer: whether the installed version is newer than that.
        note: what could not be compared, and why; empty if nothing.
    """

    engine: str
    version: str | None
    installed: str
    where: str
    found: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    read: str = ""
    newer: bool = False
    note: str = ""

    @property
    def drifted(self) -> bool:
        """Whether the values differ; a newer version with the same ones is no drift."""
        return bool(self.missing or self.gone)


def probe(
    pythons: Sequence[Path] = (), engines: Sequence[Engine] | None = None
) -> tuple[Probed, ...]:
    """Every engine found: in this environment, on PATH, and in other environments.

    Args:
        pythons: interpreters of other environments.
        engines: to look for; None for all that are known.

    Raises:
        NybbleError: an interpreter that was named cannot be run or does not answer.
    """
    known = tuple(known_engines()) if engines is None else tuple(engines)
    for path in pythons:
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise NybbleError("no Python interpreter to run", seen=path,
                              allowed="an interpreter, such as .venv/bin/python",
                              hint="--python /path/to/venv/bin/python")  # fmt: skip
    found = list(_environment(Path(sys.executable), known, own=True))
    seen = {_place(Path(sys.executable))}
    named = [(path, True) for path in pythons]
    for path, asked in named + [(path, False) for path in _interpreters()]:
        if _place(path) not in seen:
            seen.add(_place(path))
            found += _environment(path, known, must=asked)
    by_name = {engine.name: engine for engine in known}
    for name, look in (("llama.cpp", _llama_server), ("ollama", _ollama)):
        if name in by_name:
            found += look(by_name[name])
    order = [engine.name for engine in known]
    return tuple(sorted(found, key=lambda p: order.index(p.engine)))


def _place(python: Path) -> tuple[str, str]:
    """An environment: python, python3 and python3.11 of one folder are the same."""
    return os.path.dirname(os.path.abspath(python)), os.path.realpath(python)


def _environment(
    python: Path, engines: Sequence[Engine], *, own: bool = False, must: bool = False
) -> Iterator[Probed]:
    asked = {name: engine for engine in engines
             for name in (*engine.packages, *TWINS.get(engine.name, ()))}  # fmt: skip
    answers, problem = _ask(python, asked, own)
    failed = {}
    if problem.startswith("it was ended by"):  # by one package perhaps: each is asked alone
        for name, engine in asked.items():
            one, why = _ask(python, {name: engine}, own)
            answers += one
            if why:
                failed[name] = why
    if problem and must and not answers:
        raise NybbleError("the interpreter did not answer", seen=f"{python}: {problem}",
                          allowed="Python 3.9 or newer", hint=f"{python} -c 'print(1)'"
                          )  # fmt: skip
    if problem and not failed and not answers:
        failed = dict.fromkeys(asked, problem)
    for name, why in failed.items():
        yield Probed(asked[name].name, None, name, str(python), read=asked[name].version,
                     note=f"not read: the interpreter that looked for it failed ({why})"
                     )  # fmt: skip
    for answer in answers:
        engine = asked[answer["package"]]
        yield _compared(engine, answer)


def _ask(
    python: Path, asked: Mapping[str, Engine], own: bool
) -> tuple[list[dict[str, Any]], str]:  # fmt: skip
    """What the child found, checked; and why it did not answer."""
    question = [
        {"package": name,
         "places": [vars(place) for place in reading(engine.name, name).places]}
        for name, engine in asked.items()
    ]  # fmt: skip
    code = Path(probe_child.__file__).read_text(encoding="utf-8")
    env = dict(os.environ)
    if not own:  # these point into this environment
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"):
            env.pop(name, None)
    got = printed([str(python), "-c", code, json.dumps(question)], _CHILD_SECONDS, env=env)
    if got.problem:
        return [], got.problem
    try:
        return [_checked(one, asked) for one in json.loads(got.text)], ""
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return [], f"it printed something else: {plain(got.text, 60) or 'nothing'}"


def _checked(answer: Any, asked: Mapping[str, Engine]) -> dict[str, Any]:
    """An answer of the right shape, or ValueError and the like."""
    if answer["package"] not in asked or not isinstance(answer["places"], list):
        raise ValueError("not asked for")
    places = [
        {"values": [plain(str(v), 60) for v in place["values"][:_MAX_VALUES]],
         "problem": plain(str(place.get("problem", "")))}
        for place in answer["places"]
    ]  # fmt: skip
    wanted = reading(asked[answer["package"]].name, answer["package"]).places
    if len(places) != len(wanted):
        raise ValueError("not what was asked for")
    return {"package": answer["package"], "version": plain(str(answer["version"]), 40),
            "where": plain(str(answer["where"]), 300), "places": places}  # fmt: skip


def _compared(engine: Engine, answer: Mapping[str, Any]) -> Probed:
    package = str(answer["package"])
    how = reading(engine.name, package)
    values = [place["values"] for place in answer["places"]]
    found = tuple(how.names.get(v, v) for v in how.join(values)) if values else ()
    problems = [p["problem"] for p in answer["places"] if p["problem"]]
    return _against(engine, f"{package} {answer['version']}", answer["where"],
                    carried(engine, package, answer["version"]), found, how,
                    "" if found else "; ".join(problems))  # fmt: skip


def _against(
    engine: Engine, installed: str, where: str, version: Version | None,
    found: tuple[str, ...], how: Reading, problem: str = "",
) -> Probed:  # fmt: skip
    """Hold what was found against the data of that version."""
    at = engine.version if version is None else str(version)
    valid = (c.name for c in engine.choices if holds(at, c.since, c.until))
    ours = [name for name in dict.fromkeys(valid) if name not in how.apart]
    notes = [how.partial] if how.partial else []
    missing: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    if found and how.more:
        gone = tuple(name for name in ours if name not in found)
        found = tuple(name for name in ours if name in found)
    elif found and not how.partial:
        missing = tuple(v for v in found if v not in (*ours, *how.ignored, *how.apart))
        gone = tuple(name for name in ours if name not in found)
    elif not found and how.places:
        notes.append("its values were not found" + (f" ({problem})" if problem else ""))
    if version is None:
        notes.append(f"compared with the data of {engine.version}: it does not tell its build"
                     if found else "it does not tell which version of the engine it carries"
                     )  # fmt: skip
    return Probed(
        engine.name, None if version is None else written(engine, version), installed, where,
        found, missing, gone, engine.version,
        version is not None and version > release(engine.version), "; ".join(notes),
    )  # fmt: skip


def _interpreters() -> Iterator[Path]:
    """Interpreters of the engines' Python programs on PATH."""
    for name in _SCRIPTS:
        path = shutil.which(name)
        if path is None:
            continue
        try:
            with open(path, "rb") as file:
                head = file.read(1024).decode("utf-8", "replace")
        except OSError:
            continue
        direct = _SHEBANG.match(head) or _BY_SHELL.search(head)
        by_env = _BY_ENV.match(head)
        python = direct[1] if direct else shutil.which(by_env[1]) if by_env else None
        if python and os.access(python, os.X_OK):
            yield Path(python)


def _llama_server(engine: Engine) -> Iterator[Probed]:
    path = shutil.which("llama-server")
    if path is None:
        return
    told = printed([path, "--version"], _PROGRAM_SECONDS, errors=True)
    build = _LLAMA_BUILD.search(told.text)
    number = int(build[1] or build[2]) if build else 0  # 0: built outside its repository
    shown = printed([path, "--help"], _PROGRAM_SECONDS)
    found = cache_types(shown.text)
    version = Version(str(number)) if number and is_build(engine.version) else None
    how = Reading((), partial="" if found else "--help names no types "
                  f"({shown.problem or told.problem or 'an older build'})")  # fmt: skip
    yield _against(engine, "llama-server", path, version, found, how)


def cache_types(text: str) -> tuple[str, ...]:
    """The types that the help of llama-server allows for --cache-type-k; empty if none."""
    begin = re.search(r"--cache-type-k[ ,\n]", text)
    if begin is None:
        return ()
    # An option's text goes on until the next line that begins with an option.
    block = re.split(r"\n(?=-)", text[begin.start() : begin.start() + 4000], maxsplit=1)[0]
    allowed = _ALLOWED.search(block)
    return tuple(re.findall(r"[A-Za-z0-9_]{1,40}", allowed[1])) if allowed else ()


def _ollama(engine: Engine) -> Iterator[Probed]:
    path = shutil.which("ollama")
    if path is None:
        return
    # A port nobody listens on: no server of another version is asked.
    env = {**os.environ, "OLLAMA_HOST": "127.0.0.1:1"}
    told = printed([path, "--version"], _PROGRAM_SECONDS, env=env, errors=True)
    match = next((m for pattern in _OLLAMA if (m := pattern.search(told.text))), None)
    how = Reading((), partial="it passes any type on to its llama-server")
    try:
        version = release(match[1]) if match else None
    except NybbleError:
        version = None
    yield _against(engine, "ollama", path, version, (), how)
