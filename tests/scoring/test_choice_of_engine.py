"""Which engine measures what, and what each refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_runs import request  # noqa: E402

from nybble.errors import NybbleError  # noqa: E402
from nybble.formats import KVSetting, parse  # noqa: E402
from nybble.scoring.backend import LlamaCpp  # noqa: E402
from nybble.scoring.choose import choose_backend  # noqa: E402
from nybble.scoring.measure import measure, plan_cells  # noqa: E402
from nybble.scoring.request import MeasureRequest  # noqa: E402
from nybble.scoring.torch_backend import Transformers  # noqa: E402
from torch_runs import write_folder  # noqa: E402

SETTINGS = ("q8_0", "q4_0", "q4_0-norot", "nyb4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of two layers, two KV heads of 64."""
    return write_folder(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gemma3 of three layers, sliding, full, sliding by 8; two KV heads of 32."""
    return write_folder(tmp_path_factory.mktemp("models") / "tiny-gemma", "gemma3")


class TestEngine:
    @pytest.mark.parametrize(
        ("settings", "changes", "kind"),
        [
            ("q4_0", {}, LlamaCpp),
            ("q8_0/q4_0-norot", {}, LlamaCpp),
            ("nyb4", {}, Transformers),
            ("q4_0+first4", {}, Transformers),
            ("q4_0", {"by": "layer"}, Transformers),
            ("q4_0", {"budget": 4.0}, Transformers),
            ("q4_0", {"engine": "transformers"}, Transformers),
        ],
    )
    def test_of_a_gguf(
        self, tiny_model: Path, settings: str, changes: dict[str, Any], kind: type
    ) -> None:
        wanted = MeasureRequest(settings=(parse(settings),), **changes)
        assert type(choose_backend(wanted, [tiny_model])) is kind

    def test_of_folders_and_hub_ids(self, folder: Path, tiny_model: Path) -> None:
        wanted = MeasureRequest(settings=(parse("q4_0"),))
        for path in (folder, Path("google/gemma-3-270m")):
            assert type(choose_backend(wanted, [path])) is Transformers
            assert type(choose_backend(wanted, [tiny_model, path])) is Transformers
            with pytest.raises(NybbleError, match="llama.cpp reads GGUF files only") as caught:
                choose_backend(dataclasses.replace(wanted, engine="llama.cpp"), [path])
            assert "--engine transformers" in str(caught.value.hint)

    @pytest.mark.parametrize("setting", ["exl3_4", "q4_0+recent32", "q8_0/nyb4"])
    def test_llama_cpp_lacks_the_type(
        self, tiny_model: Path, text: Path, tmp_path: Path, setting: str
    ) -> None:
        with pytest.raises(NybbleError, match="llama.cpp has no such KV cache") as caught:
            measure(request(tiny_model, text, tmp_path, "q4_0", setting, engine="llama.cpp"))
        assert caught.value.seen == str(parse(setting))
        assert "--engine transformers" in str(caught.value.hint)

    @pytest.mark.parametrize("changes", [{"by": "layer"}, {"by": "head"}, {"budget": 4.5}])
    def test_llama_cpp_has_no_parts(self, changes: dict[str, Any]) -> None:
        with pytest.raises(NybbleError, match="stores every layer alike"):
            MeasureRequest(engine="llama.cpp", **changes)

    def test_no_dry_run(self, folder: Path) -> None:
        with pytest.raises(NybbleError, match="--dry-run plans runs in llama.cpp only"):
            plan_cells(MeasureRequest(model=folder, settings=(KVSetting("q4_0", "q4_0"),)))

    def test_context_beyond_the_model(self, folder: Path, text: Path, tmp_path: Path) -> None:
        with pytest.raises(NybbleError, match="longer than the model was trained for") as caught:
            measure(request(folder, text, tmp_path, contexts=(4096,)))
        assert caught.value.hint == "--context 2048"
