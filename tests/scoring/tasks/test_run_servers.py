"""Tasks through servers: fakes that solve or err, and a real llama.cpp."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nybble.engines.llamacpp.model import Model
from nybble.errors import EngineError, NybbleError
from nybble.formats import parse
from nybble.report.tasks import grid, markdown
from nybble.results.tasks import TaskCell
from nybble.scoring.request import MeasureRequest
from nybble.scoring.tasks.base import Query
from nybble.scoring.tasks.measure import TaskResult, measure_tasks, plan_tasks
from nybble.scoring.tasks.registry import TASKS
from nybble.scoring.tasks.request import TaskRequest
from server_fakes import FakeVLLM, Running

LENGTH = 700
_SERVE = """
import sys, xllamacpp as x
p = x.CommonParams()
p.model.path, p.n_ctx, p.n_parallel, p.cpuparams.n_threads = sys.argv[1], 1024, 1, 1
p.cache_type_k = p.cache_type_v = getattr(x.ggml_type, "GGML_TYPE_" + sys.argv[2].upper())
p.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
server = x.Server(p)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


class Answering(FakeVLLM):
    """A server that reads the prompt as the task's own solver does, and errs now and then."""

    pieces: list[bytes]
    wrong: int = 0  # every so many answers

    def post(self, path: str, body: dict[str, Any]) -> Any:
        if path != "/v1/completions":
            return super().post(path, body)
        self.count(body)
        assert body["temperature"] == 0 and body["stop"] == ["\n\n"]
        prompt = b"".join(self.pieces[t] for t in body["prompt"]).decode()
        context, question, lead = prompt.rsplit("\n\n", 2)
        text = TASKS["needle"].solve(context, Query(question, lead, (), (), 0.0))
        if self.wrong and len(self.requests) % self.wrong == 0:
            text = " 1"
        return {"choices": [{"text": text, "finish_reason": "stop"}],
                "usage": {"completion_tokens": len(text)}}  # fmt: skip


def _fake(model: Path, kv: str, wrong: int = 0, **changes: Any) -> Answering:
    fake = Answering(kv=kv, root=str(model), **changes)
    fake.pieces, fake.wrong = Model(model, no_alloc=True).pieces(), wrong
    return fake


def _ask(model: Path, out: Path, urls: dict[str, str], **changes: Any) -> TaskResult:
    pairs = tuple((parse(s), u) for s, u in urls.items())
    measured: dict[str, Any] = {
        "model": model, "out": out, "contexts": (LENGTH,), "documents": 5, "engine": "vllm",
        "urls": pairs, "settings": tuple(s for s, _ in pairs), **changes,
    }  # fmt: skip
    return measure_tasks(_request(measured))


def _request(measured: dict[str, Any]) -> TaskRequest:
    return TaskRequest(MeasureRequest(**measured), ("needle",), 3)


def _cell(result: TaskResult, setting: str) -> TaskCell:
    (found,) = [
        c for c in result.run.cells if c.setting == str(parse(setting)) and not c.depth
    ]  # fmt: skip
    return found


def test_exact_answers_of_two_servers(tiny_model: Path, tmp_path: Path) -> None:
    good, bad = _fake(tiny_model, "auto"), _fake(tiny_model, "fp8", wrong=3)
    with Running(good) as a, Running(bad) as b:
        result = _ask(tiny_model, tmp_path, {"bf16/bf16": a, "fp8_e4m3/fp8_e4m3": b})
        asked = len(good.requests)
        again = _ask(tiny_model, tmp_path, {"bf16/bf16": a, "fp8_e4m3/fp8_e4m3": b})
    assert len(good.requests) == asked == 15  # the second run read what the first left
    assert again.run.cells == result.run.cells
    reference, candidate = _cell(result, "bf16"), _cell(result, "fp8_e4m3")
    assert reference.role == "reference" and result.run.protocol["reference"].startswith("bf16")
    assert reference.exact is not None and reference.exact.value == 1.0
    assert candidate.exact is not None and candidate.exact.value == pytest.approx(10 / 15)
    assert (candidate.by, candidate.lost, candidate.gained) == ("exact", 5, 0)
    assert candidate.p == 0.0625
    assert reference.choice is None and candidate.choice_change is None
    assert candidate.answer_nll is None
    assert grid(result.run).rows[0][-1] == "66.7% +0 −5" and "own words" in markdown(result.run)
    assert {tuple(r["prompt"]) for r in good.requests} == {tuple(r["prompt"]) for r in bad.requests}


def test_one_server_after_the_other(tiny_model: Path, tmp_path: Path) -> None:
    with Running(_fake(tiny_model, "auto")) as url:
        _ask(tiny_model, tmp_path, {"f16/f16": url})
    with Running(_fake(tiny_model, "fp8")) as url:
        result = _ask(tiny_model, tmp_path, {"fp8_e4m3/fp8_e4m3": url})
        assert _cell(result, "f16").role == "reference"
        assert _cell(result, "fp8_e4m3").lost == 0  # the same answers are no sign of anything
        with pytest.raises(EngineError, match="needed once more"):
            _ask(tiny_model, tmp_path, {"fp8_e4m3/fp8_e4m3": url}, documents=6)
        with pytest.raises(NybbleError, match="nothing to compare with"):
            _ask(tiny_model, tmp_path / "other", {"fp8_e4m3/fp8_e4m3": url})


def test_server_that_dies_costs_its_setting_only(tiny_model: Path, tmp_path: Path) -> None:
    good, bad = _fake(tiny_model, "auto"), _fake(tiny_model, "fp8", dies_after=4)
    with Running(good) as a, Running(bad) as b:
        result = _ask(tiny_model, tmp_path, {"f16/f16": a, "fp8_e4m3/fp8_e4m3": b})
    assert _cell(result, "fp8_e4m3").status == "failed"
    assert _cell(result, "f16").n_queries == 15


def test_wrong_server_and_no_server(tiny_model: Path, tmp_path: Path) -> None:
    with Running(_fake(tiny_model, "fp8")) as url, pytest.raises(EngineError, match="another KV"):
        _ask(tiny_model, tmp_path, {"f16/f16": url})
    with pytest.raises(EngineError):
        _ask(tiny_model, tmp_path, {"f16/f16": "http://127.0.0.1:9"})
    pairs = ((parse("f16/f16"), "http://127.0.0.1:9"),)
    planned = {"model": tiny_model, "engine": "vllm", "urls": pairs, "settings": (pairs[0][0],),
               "contexts": (LENGTH,)}  # fmt: skip
    with pytest.raises(NybbleError, match="--dry-run"):
        plan_tasks(_request(planned))


@pytest.fixture
def llama(tiny_model: Path) -> Iterator[str]:
    """A real llama.cpp server with a 16-bit cache."""
    child = subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(tiny_model), "f16"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    yield child.stdout.readline().strip()
    child.kill()
    child.wait()


@pytest.mark.slow
def test_llamacpp_serves_what_llamacpp_answers(
    tiny_model: Path, tmp_path: Path, llama: str
) -> None:
    """The same ids and greedy answers, in process and through the server."""
    import duckdb

    served = _ask(tiny_model, tmp_path / "a", {"f16/f16": llama}, engine="llama.cpp", documents=1)
    own = measure_tasks(_request({
        "model": tiny_model, "out": tmp_path / "b", "contexts": (LENGTH,), "documents": 1,
        "settings": (parse("q8_0"),), "threads": 2,
    }))  # fmt: skip
    found = [
        duckdb.execute(
            f"select text_id, answer from '{r.folder}/tasks/*-f16-f16-*.parquet' order by number"
        ).fetchall()
        for r in (served, own)
    ]
    assert [t for t, _ in found[0]] == [t for t, _ in found[1]]
    # The first characters at least: near ties of a random model part later.
    assert [a[:2] for _, a in found[0]] == [a[:2] for _, a in found[1]]
