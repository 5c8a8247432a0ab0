"""Summaries of lm-evaluation-harness: `results_*.json` of `lm_eval --output_path`.

The form is that of lm-eval 0.4.13 (loggers/evaluation_tracker.py). Keys are "metric,filter" with
"metric_stderr,filter" beside it; the filter "none" is left out of the metric's name, any other
stays. A KV setting is told by nybble's own model alone (docs/lm-eval.md); for other models it stays
empty unless given.
"""

from __future__ import annotations

import json
import math
from typing import Any

from nybble.errors import NybbleError
from nybble.results.base.external import External
from nybble.results.importers.source import MAX_ROWS, Found, Given, Source

name = "lm-eval"
about = "results_*.json of lm-evaluation-harness"
_PRETRAINED = ("pretrained", "model", "path")


def knows(source: Source) -> bool:
    """Whether it is a JSON object with "results" and what lm-eval writes beside them."""
    if not source.text.lstrip().startswith("{") or '"results"' not in source.text:
        return False
    return any(f'"{key}"' in source.text for key in ("versions", "configs", "lm_eval_version"))


def read(source: Source, given: Given) -> Found:
    """Every metric of every task.

    Raises:
        NybbleError: no such summary, no name of the model, or a KV setting that contradicts the
            file's own.
    """
    data = _object(source)
    config = _dict(data.get("config"))
    arguments = _arguments(config.get("model_args"))
    model = given.model or _model(data, arguments)
    if not model:
        raise NybbleError("the file does not name the model", seen=source.path,
                          hint="--model NAME")  # fmt: skip
    found = Found(version=_text(data.get("lm_eval_version")))
    setting = _setting(config, arguments, source, given)
    better, samples = _dict(data.get("higher_is_better")), _dict(data.get("n-samples"))
    shots, versions = _dict(data.get("n-shot")), _dict(data.get("versions"))
    # Older versions list groups among the tasks as well.
    for task, metrics in {**_dict(data.get("groups")), **data["results"]}.items():
        if not isinstance(metrics, dict):
            found.notes.append(f"{_text(task)}: no metrics, left out")
            continue
        note = [f"{shots[task]}-shot"] if _whole(shots.get(task)) is not None else []
        note += [f"task version {_text(versions[task])}"] if task in versions else []
        for key, value in metrics.items():
            metric, stderr = _names(key)
            if not metric or isinstance(value, str):
                continue  # a standard error, the alias, sample_len or "N/A"
            if (number := _finite(value)) is None:
                found.notes.append(f"{_text(task)}: {key} is {_text(value)}, left out")
                continue
            up = _dict(better.get(task)).get(key.partition(",")[0])
            found.rows.append(
                External(
                    model=model, setting=setting, metric=metric, value=number,
                    stderr=_finite(metrics.get(stderr)), task=_text(task),
                    context=given.context, n=_whole(_dict(samples.get(task)).get("effective")),
                    higher_is_better=up if isinstance(up, bool) else None, note=", ".join(note),
                )
            )  # fmt: skip
    if not found.rows or len(found.rows) > MAX_ROWS:
        why = found.notes[0] if found.notes else f"{len(found.rows):,} numbers"
        raise NybbleError("nothing to import from this summary", seen=f"{source.path}: {why}",
                          allowed=f"1 to {MAX_ROWS:,} metrics of tasks")  # fmt: skip
    return found


def _object(source: Source) -> dict[str, Any]:
    try:
        data = json.loads(source.text)
    except (ValueError, RecursionError) as error:
        raise NybbleError("not a results file of lm-eval", seen=f"{source.path}: {error}",
                          allowed=about) from error  # fmt: skip
    if not isinstance(data, dict) or not isinstance(data.get("results"), dict):
        raise NybbleError("not a results file of lm-eval", seen=f'{source.path}: no "results"',
                          allowed=about)  # fmt: skip
    return data


def _names(key: str) -> tuple[str, str]:
    """The metric's name and the key of its standard error; no name for what is no metric."""
    metric, comma, rule = key.partition(",")
    if not comma or metric.endswith("_stderr"):
        return "", ""
    return metric if rule == "none" else key, f"{metric}_stderr,{rule}"


def _arguments(given: Any) -> dict[str, str]:
    """`model_args`: "a=1,b=2" of older versions, or an object."""
    if isinstance(given, dict):
        return {str(k): _text(v) for k, v in given.items()}
    parts = (part.partition("=") for part in _text(given).split(","))
    return {k.strip(): v for k, _, v in parts}


def _model(data: dict[str, Any], arguments: dict[str, str]) -> str:
    told = next((arguments[key] for key in _PRETRAINED if arguments.get(key)), "")
    # A folder of somebody's disk: its last part is the name. A hub id has one slash.
    name = told or _text(data.get("model_name"))
    return name if name.count("/") <= 1 and "\\" not in name else name.split("/")[-1]


def _setting(
    config: dict[str, Any], arguments: dict[str, str], source: Source, given: Given
) -> str:
    if _text(config.get("model")) != "nybble":
        return given.setting or ""
    told = given.read_setting(arguments.get("kv") or "f16/f16")
    if given.setting not in (None, told):
        raise NybbleError("the file was written with another KV setting",
                          seen=f"--kv {given.setting}, {source.path}: {told}",
                          hint="leave --kv out")  # fmt: skip
    return told


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return "" if value is None else str(value)[:200]


def _finite(value: Any) -> float | None:
    """The value where it is a finite number; whole numbers may be longer than a float's."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        return None
    return float(value) if math.isfinite(value) else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
