"""Logs of llama.cpp's `llama-perplexity`: perplexity, KL divergence, HellaSwag, Winogrande.

The lines are those of tools/perplexity/perplexity.cpp (LOG and LOG_INF calls), with or without
time stamps in front. Newer builds tell model and KV types only with `-lv 4`; where a log does not,
the user must name the model, and the KV setting stays empty unless given. Percentages stay
percentages, as the tool prints them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from nybble.errors import NybbleError
from nybble.results.base.external import External
from nybble.results.importers.source import MAX_ROWS, Found, Given, Source, number

_ANSI = re.compile(r"\x1b\[[0-9;]{0,12}[A-Za-z]")
_NUMBER = r"(-?[0-9.]{1,24}(?:e[-+]?\d{1,4})?|-?nan(?:\([a-z]{1,8}\))?|-?inf)"
_ERROR = rf"(?:\s*(?:±|\+/-)\s*{_NUMBER})?"
_BUILD = re.compile(r"\bbuild(?:: | = | )(\d{1,9}) \((\w{1,40})\)")
_FILE = re.compile(r"loaded meta data with \d+ key-value pairs and \d+ tensors from (.{1,1000}?) "
                   r"\(version")  # fmt: skip
_NAME = re.compile(r": general\.name\s{1,20}= (.{1,200})$")
_WEIGHTS = re.compile(r": (?:model ftype|file type)\s{1,20}= (.{1,80})$")
_CACHE = re.compile(r"K \((\w{1,20})\): {1,12}[0-9.]{1,12} MiB, V \((\w{1,20})\):")
_CHUNKS = re.compile(r"\b(?:calculating perplexity|computing) over (\d{1,9}) chunks"
                     r"(?:, n_ctx=(\d{1,9}))?")  # fmt: skip
_SELECTED = re.compile(r"(?:selecting (\d{1,9}) .{1,24} tasks|over (\d{1,9}) tasks)\.")
_PPL = re.compile(rf"\bFinal estimate: PPL = {_NUMBER}{_ERROR}")
_LINE = re.compile(rf"^(?:[0-9.]+ [A-Z] )?\s*((?:Mean|Maximum|Minimum|Median|RMS|Same|Cor|[0-9.]+%)"
                   rf"[^:]{{0,40}}?)\s*:\s*{_NUMBER}{_ERROR}\s*(%?)\s*$")  # fmt: skip
_HELLASWAG = re.compile(rf"^(\d{{1,9}})\t{_NUMBER}%?(?:\t\[.*\])?\s*$")
_WINOGRANDE = re.compile(rf"Final Winogrande score\((\d{{1,9}}) tasks\): {_NUMBER}{_ERROR}")
_CHOICE = re.compile(rf"\bFinal result: {_NUMBER}{_ERROR}")

# As the tool spells them, spaces made single.
_STATISTICS = {
    "Mean PPL(Q)": "ppl", "Mean PPL(base)": "ppl_base", "Mean PPL(Q)/PPL(base)": "ppl_ratio",
    "Mean PPL(Q)-PPL(base)": "ppl_diff", "Mean ln(PPL(Q)/PPL(base))": "ln_ppl_ratio",
    "Cor(ln(PPL(Q)), ln(PPL(base)))": "ln_ppl_correlation", "Same top p": "same_top_p",
}  # fmt: skip
_LEVELS = {
    "Mean": "mean", "Maximum": "max", "Minimum": "min", "Median": "median", "RMS": "rms",
    "99.9%": "p999", "99.0%": "p99", "95.0%": "p95", "90.0%": "p90", "75.0%": "p75",
    "25.0%": "p25", "10.0%": "p10", "5.0%": "p05", "1.0%": "p01", "0.1%": "p001",
}  # fmt: skip
_PERCENT = "percent"
_TASKS = {"hellaswag_score :": "hellaswag", "winogrande_score :": "winogrande",
          "multiple_choice_score": "multiple choice"}  # fmt: skip
_BETTER = {"ppl": False, "ppl_ratio": False, "ppl_diff": False, "ln_ppl_ratio": False,
           "mean_kld": False, "median_kld": False, "max_kld": False, "p999_kld": False,
           "p99_kld": False, "p95_kld": False, "p90_kld": False, "rms_dp": False,
           "same_top_p": True, "ln_ppl_correlation": True}  # fmt: skip

_MARKS = (
    "Final estimate: PPL", "KL divergence statistics", "Final Winogrande score", "hellaswag_score",
    "winogrande_score", "multiple_choice_score", "perplexity: calculating perplexity",
    "kl_divergence: computing",
)  # fmt: skip
_LINE_CHARS = 2000  # the running perplexities of all chunks are one line, and not needed

name = "llama-perplexity"
about = "a log of llama.cpp's llama-perplexity, finished"


def knows(source: Source) -> bool:
    """Whether it has a line that only this tool prints."""
    return any(mark in source.text for mark in _MARKS)


def read(source: Source, given: Given) -> Found:
    """Every result of the log; one log may hold several runs, one after the other.

    Raises:
        NybbleError: no finished result, no name of the model, or KV types that contradict each
            other or the user.
    """
    log = _Log(source, given)
    for line in source.text.splitlines():
        log.line(_ANSI.sub("", line[-_LINE_CHARS:]))
    found = log.found
    found.version = ", ".join(log.builds)[:200]
    if not found.rows:
        why = found.notes[0] if found.notes else "no finished result in it"
        raise NybbleError("nothing to import from this log", seen=f"{source.path}: {why}",
                          allowed="a log to its end, with Final estimate or the statistics of "
                          "--kl-divergence")  # fmt: skip
    return found


@dataclass
class _Run:
    """What the log told of the run so far.

    Attributes:
        model: general.name.
        file: name of the model's file.
        weights: type of the weights, in llama.cpp's words.
        caches: K and V types, one pair for each cache that was allocated.
        chunks: of text.
        context: tokens of a chunk.
        task: empty for perplexity and KL divergence.
        tasks: how many there are.
        seen: metrics that were read.
    """

    model: str = ""
    file: str = ""
    weights: str = ""
    caches: set[tuple[str, str]] = field(default_factory=set)
    chunks: int | None = None
    context: int | None = None
    task: str = ""
    tasks: int | None = None
    seen: set[str] = field(default_factory=set)


class _Log:
    """Reads line by line: what a line tells of the run, then the result that it may hold."""

    def __init__(self, source: Source, given: Given) -> None:
        self.found = Found()
        self.builds: dict[str, None] = {}
        self._source, self._given, self._run = source, given, _Run()

    def line(self, line: str) -> None:
        """Take the next line."""
        self._model(line)
        self._text(line)
        if not self._task(line) and not self._perplexity(line):
            self._statistic(line)

    def _model(self, line: str) -> None:
        if build := _BUILD.search(line):
            self.builds[f"b{build[1]} ({build[2]})"] = None
        if file := _FILE.search(line):  # a model is loaded: the next run of this log
            self._run = _Run(file=re.split(r"[\\/]", file[1])[-1])
        if model := _NAME.search(line):
            self._run.model = model[1].strip()
        if weights := _WEIGHTS.search(line):
            self._run.weights = weights[1].strip()
        if cache := _CACHE.search(line):
            self._run.caches.add((cache[1], cache[2]))

    def _text(self, line: str) -> None:
        if chunks := _CHUNKS.search(line):
            self._run.chunks = int(chunks[1])
            self._run.context = int(chunks[2]) if chunks[2] else None
            self._run.seen = set()
        for mark, task in _TASKS.items():
            if mark in line:
                self._run.task = task
        if selected := _SELECTED.search(line):
            self._run.tasks = int(selected[1] or selected[2])

    def _task(self, line: str) -> bool:
        run = self._run
        if match := _WINOGRANDE.search(line):
            self._number("acc", match[2], match[3], _PERCENT, int(match[1]))
        elif run.task == "multiple choice" and (match := _CHOICE.search(line)):
            self._number("acc", match[1], match[2], _PERCENT, run.tasks)
        elif run.task == "hellaswag" and (match := _HELLASWAG.match(line)):
            # There is no last line: the row of the last task is the result. Its Wilson interval
            # holds no standard error.
            if int(match[1]) == run.tasks:
                self._number("acc_norm", match[2], None, _PERCENT, run.tasks)
        return match is not None

    def _perplexity(self, line: str) -> bool:
        match = _PPL.search(line)
        if match and "ppl" not in self._run.seen:
            self._run.seen.add("ppl")
            self._number("ppl", match[1], match[2], "", self._run.chunks)
        return match is not None

    def _statistic(self, line: str) -> None:
        match = _LINE.match(line)
        metric = _metric(" ".join(match[1].split())) if match else None
        if match and metric and metric not in self._run.seen:  # some builds print "99.0%" twice
            self._run.seen.add(metric)
            unit = _PERCENT if match[4] else ""
            self._number(metric, match[2], match[3], unit, self._run.chunks)

    def _number(self, metric: str, text: str, error: str | None, unit: str, n: int | None) -> None:
        value = number(text)
        if value is None:
            self.found.notes.append(f"{metric} is {text}, left out")
            return
        if len(self.found.rows) == MAX_ROWS:
            raise NybbleError("too many results in one log", seen=self._source.path,
                              allowed=f"{MAX_ROWS:,}")  # fmt: skip
        run, given = self._run, self._given
        weights = f"weights {run.weights}" if run.weights else ""
        better = True if metric.startswith("acc") else _BETTER.get(metric)
        self.found.rows.append(
            External(
                model=self._name(), setting=self._setting(), metric=metric, value=value,
                stderr=number(error) if error else None, task=run.task,
                context=given.context or run.context, n=n, higher_is_better=better,
                note="; ".join(part for part in (unit, weights) if part),
            )
        )  # fmt: skip

    def _name(self) -> str:
        found = self._given.model or self._run.model or self._run.file
        if not found:
            raise NybbleError("the log does not name the model", seen=self._source.path,
                              allowed="a log of -lv 4, or the name",
                              hint="--model NAME")  # fmt: skip
        return found

    def _setting(self) -> str:
        """The KV setting of the cache lines, which the user's must not contradict."""
        given, path = self._given, self._source.path
        told = {given.read_setting(f"{k}/{v}") for k, v in self._run.caches}
        if given.setting is None and len(told) > 1:
            raise NybbleError("the log names several KV types for one run",
                              seen=f"{path}: {', '.join(sorted(told))}",
                              hint="--kv K/V says which it is")  # fmt: skip
        # Rotation and what surrounds the types is not in a log: only the types can contradict.
        types = re.split(r"[-+]", given.setting)[0] if given.setting else ""
        if types and told and types not in told:
            raise NybbleError("the log was written with another KV setting",
                              seen=f"--kv {given.setting}, {path}: {', '.join(sorted(told))}",
                              hint="leave --kv out")  # fmt: skip
        return given.setting or next(iter(told), "")


def _metric(label: str) -> str | None:
    if label in _STATISTICS:
        return _STATISTICS[label]
    level, _, of = label.partition(" ")
    kind = {"KLD": "kld", "Δp": "dp", "dp": "dp"}.get(of)
    return f"{_LEVELS[level]}_{kind}" if kind and level in _LEVELS else None
