"""The command line with the transformers engine: one whole run, and everything it refuses."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from nybble.cli.main import main  # noqa: E402
from nybble.scoring.calibrate import calibrate  # noqa: E402
from torch_runs import in_process, write_folder  # noqa: E402

SMALL = ("--context", "64", "--documents", "1", "--categories", "prose")
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of two layers, two KV heads of 64."""
    return write_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to damage, named `tiny` in the working folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(original, tmp_path / "tiny"))


@pytest.fixture
def bad(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs a command that must fail: exit 1, one message of the agreed form, no run folder."""

    def run(*words: object) -> str:
        capsys.readouterr()
        code = main([str(w) for w in words])
        out, err = capsys.readouterr()
        assert (code, out) == (1, ""), err
        message = err[err.index("error: ") :]
        assert re.search("^  seen:    .", message, re.M)
        assert re.search("^  allowed: .|^  try:     .", message, re.M)
        assert "unexpected" not in message and "Traceback" not in err
        assert err.count("error: ") == 1
        assert not list(tmp_path.rglob("nybble-results"))
        return message

    with in_process():
        yield run


@pytest.mark.timeout(180)
def test_a_whole_run(original: Path, tmp_path: Path, invoke: Run) -> None:
    """With real processes: a folder, a type that needs a calibration, layer by layer."""
    folder = shutil.copytree(original, tmp_path / "model")
    env = {"NYBBLE_CACHE": str(tmp_path / "cache")}
    command = ("measure", "model", *SMALL, "--kv", "q8_0/nyb4", "--by", "layer", "--threads", 1)
    ran = invoke(*command, "--json", cwd=tmp_path, env=env)
    assert ran.code == 0, ran.err
    rows = ran.record["rows"]
    assert [(r["role"], r["setting"]) for r in rows] == [
        ("candidate", "q8_0/nyb4"), ("floor", "bf16/bf16"), ("identity", "f16/f16"),
        ("part", "f16/f16+at0:q8_0/f16"), ("part", "f16/f16+at0:f16/nyb4"),
        ("part", "f16/f16+at1:q8_0/f16"), ("part", "f16/f16+at1:f16/nyb4"),
    ]  # fmt: skip
    assert all(r["simulated"] and r["status"] == "done" for r in rows)
    assert rows[2]["metrics"]["max_kld"]["value"] == 0
    assert (folder / "nybble-calibration.safetensors").is_file()
    for text in ("calibrating, into nybble-cal", "calibrated on 4,096 tokens", "loading the"):
        assert text in ran.err
    (out,) = (tmp_path / "nybble-results").iterdir()
    assert (out / "report.html").is_file() and len(list((out / "rows").iterdir())) == 7


class TestFolder:
    def test_no_config(self, bad: Run, folder: Path) -> None:
        (folder / "config.json").unlink()
        assert "has no config.json" in bad("measure", "tiny", *SMALL)

    def test_nothing_in_it(self, bad: Run, folder: Path) -> None:
        (folder.parent / "empty").mkdir()
        assert "holds no model" in bad("measure", "empty", *SMALL)

    @pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors"])
    def test_a_file_is_missing(self, bad: Run, folder: Path, name: str) -> None:
        (folder / name).unlink()
        assert name in bad("measure", "tiny", *SMALL)
        assert name in bad("calibrate", "tiny")

    def test_shards_missing(self, bad: Run, folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        index = {"weight_map": {"a": "model-00001-of-00002.safetensors",
                                "b": "model-00002-of-00002.safetensors"}}  # fmt: skip
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        message = bad("measure", "tiny", *SMALL)
        assert "in 2 parts and some are missing" in message
        assert "model-00002-of-00002.safetensors" in message

    def test_only_pickled_weights(self, bad: Run, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
        message = bad("measure", "tiny", *SMALL)
        assert "PyTorch pickle, which can run code" in message and "safetensors" in message

    @pytest.mark.parametrize(
        ("changes", "parts"),
        [
            ({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, ["runs no code", "auto_map"]),
            ({"model_type": "lamma"}, ["does not know this kind of model", "lamma", "llama"]),
            ({"quantization_config": {"quant_method": "awq"}}, ["are quantized", "awq"]),
            ({"num_hidden_layers": 3}, ["weights do not fit", "missing", "layers.2"]),
            ({"hidden_size": 96}, ["weights do not fit", "misshapen"]),
        ],
    )
    def test_config(
        self, bad: Run, folder: Path, changes: dict[str, Any], parts: list[str]
    ) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        message = bad("measure", "tiny", *SMALL, "--kv", "q4_0")
        for part in parts:
            assert part in message

    def test_cut_short(self, bad: Run, folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        message = bad("measure", "tiny", *SMALL)
        assert "after the end of the file" in message and "download the file again" in message

    def test_damaged_tokenizer(self, bad: Run, folder: Path) -> None:
        (folder / "tokenizer.json").write_text('{"model": {}}')
        assert "tokenizer.json cannot be read" in bad("measure", "tiny", *SMALL)

    @pytest.mark.parametrize("head", [24, 80])
    def test_head_size(self, bad: Run, tmp_path: Path, head: int,
                       monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
        write_folder(tmp_path / "odd", head_dim=head)
        monkeypatch.chdir(tmp_path)
        message = bad("measure", "odd", *SMALL, "--kv", "q8_0/f16,f16/q4_0")
        assert "K type q8_0 stores blocks of 32 elements" in message
        assert f"head size {head}" in message

    def test_hub_id_not_in_the_cache(
        self, bad: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        message = bad("measure", "google/gemma-3-270m", *SMALL)
        assert "nybble does not download" in message and "google/gemma-3-270m" in message
        assert "hf download google/gemma-3-270m" in message

    def test_hub_id_in_the_cache(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        snapshot = tmp_path / "hub" / "models--a--b" / "snapshots" / "0123abc"
        shutil.copytree(folder, snapshot)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        with in_process():
            assert main(["measure", "a/b", *SMALL, "--kv", "q4_0", "-q", "--json"]) == 0
        model = json.loads(capsys.readouterr().out)["models"][0]
        assert (model["name"], model["file"]) == ("a/b", "0123abc")
        assert [p.name.split("-")[:2] for p in (tmp_path / "nybble-results").iterdir()] == [
            ["a", "b"]
        ]

    def test_the_folder_one_stands_in(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(folder)
        with in_process():
            assert main(["measure", ".", *SMALL, "--kv", "q4_0", "-q", "--json"]) == 0
        model = json.loads(capsys.readouterr().out)["models"][0]
        assert (model["name"], model["file"]) == ("tiny", "tiny")


class TestCalibration:
    def test_of_another_model(self, bad: Run, folder: Path, tmp_path: Path) -> None:
        shutil.copy(calibrate(write_folder(tmp_path / "other", seed=1)).path, folder)
        message = bad("measure", "tiny", *SMALL, "--kv", "nyb4")
        assert "this calibration was taken of another model" in message
        assert "nybble calibrate MODEL --fresh" in message

    def test_missing(self, bad: Run, folder: Path) -> None:
        message = bad("measure", "tiny", *SMALL, "--kv", "nyb4", "--calibration", "none.st")
        assert "there is no such calibration" in message and "none.st" in message

    def test_a_folder(self, bad: Run, folder: Path) -> None:
        message = bad("measure", "tiny", *SMALL, "--kv", "nyb4", "--calibration", ".")
        assert "there is no such calibration" in message

    def test_there_already(self, bad: Run, folder: Path) -> None:
        (folder / "nybble-calibration.safetensors").touch()
        assert "there is a calibration already" in bad("calibrate", "tiny")

    @pytest.mark.parametrize(
        ("options", "parts"),
        [
            ("--text none.txt", ["none.txt"]),
            ("--device tpu", ["unknown value for --device", "tpu", "auto, cpu, cuda"]),
        ],
    )
    def test_options(self, bad: Run, folder: Path, options: str, parts: list[str]) -> None:
        message = bad("calibrate", "tiny", *options.split())
        for part in parts:
            assert part in message
        assert not (folder / "nybble-calibration.safetensors").exists()


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "parts"),
        [
            ("--engine llamacpp", ["--engine", "llamacpp", "auto, llama.cpp, transformers"]),
            ("--device tpu", ["--device", "tpu", "auto, cpu, cuda"]),
            ("--by token", ["--by", "token", "layer, head"]),
            ("--budget 0", ["--budget is in bits an element", "0", "up to 16"]),
            ("--budget nan", ["--budget is in bits an element"]),
            ("--budget 4.5 --against other", ["--budget is about one model", "--against other"]),
            (
                "--by layer --engine llama.cpp",
                ["stores every layer alike", "--engine transformers"],
            ),
            ("--budget 4 --engine llama.cpp", ["stores every layer alike"]),
            ("--engine llama.cpp", ["llama.cpp reads GGUF files only", "--engine transformers"]),
            ("--dry-run", ["--dry-run plans runs in llama.cpp only"]),
            ("--kv exl3_9", ["unknown KV type; did you mean exl3_", "nybble formats"]),
            ("--kv q4_0+frist4", ["did you mean +first?", "+frist4"]),
            ("--kv q4_0+at0h7:q8_0/q8_0", ["no such KV head", "head 7", "0 to 1"]),
            ("--kv q4_0+skip5", ["no such layer", "layer 5", "0 to 1"]),
            ("--context 4096", ["4,096 tokens", "up to 2,048", "--context 2048"]),
            ("--framing template", ["no chat template", "--framing auto or raw"]),
        ],
    )
    def test_refused(self, bad: Run, folder: Path, options: str, parts: list[str]) -> None:
        message = bad("measure", "tiny", *SMALL, *options.split())
        for part in parts:
            assert part in message

    def test_llama_cpp_lacks_the_type(self, bad: Run, tiny_model: Path) -> None:
        message = bad("measure", tiny_model, *SMALL, "--engine", "llama.cpp", "--kv", "exl3_4")
        assert "llama.cpp has no such KV cache" in message and "exl3_4/exl3_4" in message
        assert "--engine transformers simulates every type" in message

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    @pytest.mark.parametrize("command", ["measure", "calibrate"])
    def test_no_gpu(self, bad: Run, folder: Path, command: str) -> None:
        options = SMALL if command == "measure" else ()
        message = bad(command, "tiny", *options, "--device", "cuda")
        assert "torch sees no GPU here" in message and "--device cpu" in message

    def test_two_models_of_different_kinds(self, bad: Run, folder: Path, tiny_model: Path) -> None:
        message = bad("measure", "tiny", "--against", tiny_model, *SMALL)
        assert "different vocabularies" in message and "two GGUFs or two folders" in message


class TestNotInstalled:
    @pytest.fixture(params=["transformers", "torch", "safetensors"])
    def absent(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
        find = importlib.util.find_spec

        def without(name: str, package: str | None = None) -> Any:
            return None if name == request.param else find(name, package)

        monkeypatch.setattr(importlib.util, "find_spec", without)
        return str(request.param)

    def test_says_what_to_install(
        self, bad: Run, absent: str, folder: Path, tiny_model: Path
    ) -> None:
        for words in (
            ("measure", "tiny", *SMALL),
            ("measure", tiny_model, *SMALL, "--kv", "nyb4"),
            ("measure", tiny_model, *SMALL, "--by", "layer"),
            ("calibrate", tiny_model),
        ):
            message = bad(*words)
            assert "the transformers engine is not installed" in message
            assert f"missing: {absent}" in message
            assert 'pip install -c constraints.txt -e ".[transformers]"' in message

    def test_llama_cpp_does_not_need_it(
        self, absent: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = str(tmp_path / "run")
        words = ["measure", str(tiny_model), *SMALL, "--kv", "q4_0", "--out", out, "-q", "--csv"]
        assert main(words) == 0
        assert capsys.readouterr().out.count("\n") == 4
