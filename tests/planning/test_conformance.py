"""nybble's memory models against docs/conformance/kv-bytes.json, and that file against itself."""

from __future__ import annotations

import ast
import importlib
import json
import operator
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plan_shapes import BY_NAME

from nybble.formats.setting import parse
from nybble.models.geometry import Geometry, Layer, State
from nybble.planning.memory.base import Load, MemoryModel

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs/conformance/kv-bytes.json"
DATA: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
CASES: list[dict[str, Any]] = DATA["cases"]
ENGINES = {
    "exllamav2": "exllamav2.ExLlamaV2", "exllamav3": "exllamav3.ExLlamaV3",
    "llama.cpp": "llamacpp.LlamaCpp", "lmdeploy": "lmdeploy.LMDeploy", "mlx-lm": "mlx_lm.MlxLm",
    "sglang": "sglang.SGLang", "tensorrt-llm": "tensorrt_llm.TensorRTLLM",
    "transformers": "transformers.Transformers", "vllm": "vllm.VLLM",
}  # fmt: skip


def engine(name: str) -> MemoryModel:
    module, _, kind = ENGINES[name].partition(".")
    found = getattr(importlib.import_module(f"nybble.planning.memory.{module}"), kind)()
    assert isinstance(found, MemoryModel)
    return found


def layer(shape: dict[str, Any]) -> Layer:
    fields = dict(shape)
    if fields["kind"] == "recurrent":
        fields = {"kind": "recurrent", "state": State(fields["conv"], fields["recurrent"])}
    return Layer(**fields)


def geometry(name: str) -> Geometry:
    model = DATA["models"][name]
    config = model["config"] or {}
    layers = tuple(layer(model["shapes"][key]) for key in model["order"])
    return Geometry(
        name, model["architecture"], layers, config.get("hidden_size", 4096),
        config.get("intermediate_size", 16384), config.get("vocab_size", 131072),
        config.get("max_position_embeddings", 131072),
    )  # fmt: skip


def label(case: dict[str, Any]) -> str:
    return "-".join(str(case[k]) for k in ("engine", "model", "setting", "context", "cards"))


@pytest.mark.parametrize("case", CASES, ids=label)
def test_same_bytes(case: dict[str, Any]) -> None:
    model, made, setting = engine(case["engine"]), geometry(case["model"]), parse(case["setting"])
    model.check(made, setting)
    options = case["options"]
    load = Load(
        case["context"], case["sequences"], case["cards"],
        options.get("max_num_batched_tokens", options.get("ubatch")),
    )  # fmt: skip
    assert model.memory(made, setting, load).of(*case["counts"]) == case["bytes"]


def test_versions_are_those_that_are_planned() -> None:
    for name in {case["engine"] for case in CASES}:
        versions = {case["version"] for case in CASES if case["engine"] == name}
        assert versions == {engine(name).version}


def test_every_engine_and_model_is_there() -> None:
    engines = Counter(case["engine"] for case in CASES)
    assert set(ENGINES) - {"llama.cpp"} <= set(engines) <= set(ENGINES)
    assert engines["vllm"] >= 56
    assert {case["model"] for case in CASES} == set(DATA["models"])
    assert FILE.stat().st_size < 200_000
    assert DATA["format"] == 1


def test_cases_are_whole_and_different() -> None:
    keys = {"model", "engine", "version", "setting", "context", "sequences", "cards", "options",
            "counts", "bytes", "how", "source"}  # fmt: skip
    seen = set()
    for case in CASES:
        hand = case["how"] == "hand-worked"
        assert set(case) == (keys | {"arithmetic"} if hand else keys)
        assert hand or case["how"] == "engine"
        assert set(case["counts"]) <= {"cache", "state", "scratch"}
        assert case["bytes"] > 0
        assert case["source"]
        same = {k: v for k, v in case.items() if k not in ("bytes", "how", "source", "arithmetic")}
        seen.add(json.dumps(same, sort_keys=True))
    assert len(seen) == len(CASES)


def worked(text: str) -> int:
    """A sum of products of whole numbers."""
    signs = {ast.Add: operator.add, ast.Mult: operator.mul, ast.Sub: operator.sub}

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.BinOp):
            return int(signs[type(node.op)](value(node.left), value(node.right)))  # type: ignore[index]
        assert isinstance(node, ast.Constant)
        assert isinstance(node.value, int)
        return node.value

    return value(ast.parse(text, mode="eval").body)


def test_arithmetic_gives_the_bytes() -> None:
    found = [case for case in CASES if "arithmetic" in case]
    assert len(found) >= 30
    for case in found:
        assert worked(case["arithmetic"]) == case["bytes"], case


def test_layers_are_those_of_the_other_tests() -> None:
    for name in DATA["models"]:
        ours, theirs = geometry(name), BY_NAME[name]
        assert ours.architecture == theirs.architecture
        for a, b in zip(ours.layers, theirs.layers, strict=True):
            for field in ("kind", "kv_heads", "k_dim", "v_dim", "window", "source", "rope_dim",
                          "state", "sinks"):  # fmt: skip
                assert getattr(a, field) == getattr(b, field), (name, field)


def test_configs_say_the_same_as_the_layers() -> None:
    named = [name for name, model in DATA["models"].items() if model["config"]]
    assert len(named) == 7
    for name in named:
        config, model = DATA["models"][name]["config"], geometry(name)
        assert config["num_hidden_layers"] == len(model.layers)
        own = model.of_kind("global", "sliding")
        heads = {config["num_key_value_heads"], config.get("num_global_key_value_heads")} - {None}
        dims = {config.get("head_dim", config["hidden_size"] // config["num_attention_heads"]),
                config.get("global_head_dim")} - {None}  # fmt: skip
        if own:
            assert {x.kv_heads for x in own} == heads
            assert {x.k_dim for x in own} == {x.v_dim for x in own} == dims
        assert {x.window for x in model.of_kind("sliding")} <= {config.get("sliding_window")}
        assert len(model.of_kind("shared")) == config.get("num_kv_shared_layers", 0)
        if "layer_types" in config:
            kinds = {"sliding_attention": "sliding", "full_attention": "global"}
            for x, kind in zip(model.layers, config["layer_types"], strict=True):
                source = x if x.source is None else model.layers[x.source]
                assert source.kind == kinds[kind]


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "bench"))
        import conformance

        yield conformance


def test_the_file_is_what_the_script_writes(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    monkeypatch.setattr(bench, "TARGET", tmp_path / "kv-bytes.json")
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    bench.main()
    assert (tmp_path / "kv-bytes.json").read_text("utf-8") == FILE.read_text("utf-8"), (
        "run python bench/conformance.py"
    )


def test_rows_of_llamacpp_are_taken_in(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    assert bench.llamacpp() == []
    n_bytes = 256 * 32 * 8 * 2 * 136
    row = {"setting": "q8_0/q8_0", "context": 256, "slots": 1, "unified": False,
           "kv_engine": n_bytes}  # fmt: skip
    models = {"llama-3.1-8b": {"rows": [row, row | {"unified": True}]}, "other": {"rows": [row]}}
    result = {"bench": "plan_llamacpp", "version": "b1", "models": models}
    (tmp_path / "plan_llamacpp.json").write_text(json.dumps(result), encoding="utf-8")
    (found,) = bench.llamacpp()
    assert (found["model"], found["bytes"], found["sequences"]) == ("llama-3.1-8b", n_bytes, 1)
    assert (found["engine"], found["version"], found["how"]) == ("llama.cpp", "b1", "engine")
