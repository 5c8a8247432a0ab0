"""Calibrations in a measurement and by themselves: made, found again, refused; and their text."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_runs import kld, request, row  # noqa: E402

from nybble.cli.main import main  # noqa: E402
from nybble.environment import cache_dir  # noqa: E402
from nybble.errors import ModelFileError, NybbleError  # noqa: E402
from nybble.models.safetensors_header import read_header  # noqa: E402
from nybble.scoring import prepare as prep  # noqa: E402
from nybble.scoring.calibrate import calibrate  # noqa: E402
from nybble.scoring.calibration_text import calibration_chunks  # noqa: E402
from nybble.scoring.corpora import CATEGORIES, chat, code, scripts, tools  # noqa: E402
from nybble.scoring.corpora.calibration import RESERVED, groups  # noqa: E402
from nybble.scoring.corpora.render import plain  # noqa: E402
from nybble.scoring.measure import Result, measure  # noqa: E402
from nybble.scoring.request import MeasureRequest, Silent  # noqa: E402
from nybble.scoring.torch_backend import Transformers  # noqa: E402
from torch_runs import TEMPLATE, in_process, scored, write_folder  # noqa: E402

NAME = "nybble-calibration.safetensors"
Asked = list[dict[str, Any]]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A model without a calibration beside it."""
    return Path(shutil.copytree(original, tmp_path / "model"))


@pytest.fixture
def asked() -> Iterator[Asked]:
    """Runs without a process; what the child was asked."""
    with in_process() as found:
        yield found


def run(folder: Path, text: Path, out: Path, *settings: str, **changes: Any) -> Result:
    return measure(request(folder, text, out, *settings or ("nyb4",), documents=1, **changes))


def calibrated(asked: Asked) -> int:
    return sum(h["op"] == "calibrate" for h in asked)


class TestInAMeasurement:
    def test_made_when_missing_then_used(
        self, folder: Path, text: Path, tmp_path: Path, asked: Asked
    ) -> None:
        first = run(folder, text, tmp_path / "a", "q4_0", "nyb4", "q4_0+mean+scale")
        path = folder / NAME
        written = path.stat().st_mtime_ns
        assert calibrated(asked) == 1
        about = read_header(path).metadata
        assert about["nybble.model"] == first.measurement.models[0].sha256
        assert (about["nybble.version"], about["nybble.tokens"]) == ("1", "4096")
        second = run(folder, text, tmp_path / "b", "q4_0+mean+scale", "nyb4")
        assert calibrated(asked) == 1 and path.stat().st_mtime_ns == written
        for setting in ("nyb4", "q4_0+mean+scale"):
            assert row(first, setting).metrics == row(second, setting).metrics
            assert 0 < kld(row(first, setting)) != kld(row(first, "q4_0"))

    def test_not_made_when_nothing_needs_it(
        self, folder: Path, text: Path, tmp_path: Path, asked: Asked
    ) -> None:
        run(folder, text, tmp_path / "a", "q4_0")
        assert not (folder / NAME).exists()
        assert not {"calibrate", "calibration"} & {h["op"] for h in asked}

    def test_of_another_model(self, folder: Path, text: Path, tmp_path: Path, asked: Asked) -> None:
        other = write_folder(tmp_path / "other", seed=1)
        shutil.copy(calibrate(other).path, folder)
        asked.clear()
        with pytest.raises(ModelFileError, match="taken of another model") as caught:
            run(folder, text, tmp_path / "a")
        assert NAME in str(caught.value.seen) and caught.value.allowed
        assert caught.value.hint == "nybble calibrate MODEL --fresh"
        assert calibrated(asked) == scored(asked) == 0
        assert run(folder, text, tmp_path / "b", "q4_0").failed == []  # it is not even read

    @pytest.mark.parametrize(
        ("damage", "what"),
        [
            (lambda data: data[:-9], "cannot read the calibration"),
            (lambda data: b"", "cannot read the calibration"),
            (lambda data: data.replace(b'version":"1"', b'version":"7"'), "not a calibration this"),
        ],
    )
    def test_damaged(
        self, folder: Path, text: Path, tmp_path: Path, asked: Asked, damage: Any, what: str
    ) -> None:
        path = calibrate(folder).path
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(ModelFileError, match=what) as caught:
            run(folder, text, tmp_path / "a")
        assert caught.value.hint == "nybble calibrate MODEL --fresh"
        # What it says helps.
        calibrate(folder, fresh=True)
        assert run(folder, text, tmp_path / "a").failed == []

    def test_named(self, folder: Path, text: Path, tmp_path: Path, asked: Asked) -> None:
        mine = tmp_path / "mine.safetensors"
        with pytest.raises(NybbleError, match="there is no such calibration") as caught:
            run(folder, text, tmp_path / "a", calibration=mine)
        assert (caught.value.seen, caught.value.hint) == (str(mine), "nybble calibrate MODEL")
        calibrate(folder, text=[text], out=mine)
        result = run(folder, text, tmp_path / "a", calibration=mine)
        assert result.failed == [] and not (folder / NAME).exists()
        assert [h["path"] for h in asked if h["op"] == "calibration"] == [str(mine)]

    def test_of_a_gguf(self, tiny_model: Path, text: Path, tmp_path: Path, asked: Asked) -> None:
        path = Path(shutil.copy(tiny_model, tmp_path / "m.gguf"))
        result = run(path, text, tmp_path / "a", "q4_0", "nyb4")
        assert (tmp_path / f"m.{NAME}").is_file()
        assert kld(row(result, "nyb4")) < kld(row(result, "q4_0"))


class TestPlace:
    def prepared(self, path: Path) -> prep.PreparedModel:
        backend = Transformers(MeasureRequest(settings=MeasureRequest().settings))
        return backend.prepare("a", path, Silent())

    def test_beside_the_model(self, folder: Path) -> None:
        assert prep.calibration_path(self.prepared(folder), cache_dir()) == folder / NAME

    def test_beside_a_gguf(self, tiny_model: Path) -> None:
        found = prep.calibration_path(self.prepared(tiny_model), cache_dir())
        assert found == tiny_model.with_name(f"tiny.{NAME}")

    def test_in_the_cache_where_the_folder_cannot_be_written(
        self, folder: Path, text: Path, tmp_path: Path, asked: Asked,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        access = prep.os.access
        monkeypatch.setattr(
            prep.os, "access", lambda path, how: path != folder and access(path, how)
        )
        run(folder, text, tmp_path / "a")
        sha256 = self.prepared(folder).sha256
        kept = cache_dir() / "calibration" / f"{sha256[:16]}.{NAME}"
        assert kept.is_file() and not (folder / NAME).exists()
        asked.clear()
        run(folder, text, tmp_path / "b")
        assert calibrated(asked) == 0
        # One that came with the model goes first.
        shutil.copy(kept, folder / NAME)
        assert prep.calibration_path(self.prepared(folder), cache_dir()) == folder / NAME

    def test_in_the_cache_for_a_hub_snapshot(self, original: Path, tmp_path: Path) -> None:
        snapshot = tmp_path / "hub" / "models--a--b" / "snapshots" / "0123"
        shutil.copytree(original, snapshot)
        found = prep.calibration_path(self.prepared(snapshot), cache_dir())
        assert found.parent == cache_dir() / "calibration"


class TestText:
    def test_reserved_documents_are_never_scored(self) -> None:
        every = {d.id for c in (chat, code, scripts, tools) for d in c.documents()}
        assert every >= RESERVED
        ids = {d.id for c in CATEGORIES.values() for d in c.load()}
        assert not ids & RESERVED and ids >= every - RESERVED

    def test_nor_are_their_words_in_other_documents(self) -> None:
        """The families of `long` are modules too."""
        found = "\n".join(plain(d) for c in CATEGORIES.values() for d in c.load())
        for group in groups():
            for document in group:
                words = document.text or "".join(m["content"] or "" for m in document.messages)
                for start in range(0, len(words) - 200, 1000):
                    assert words[start : start + 200] not in found, document.id

    def test_every_category_keeps_enough(self) -> None:
        assert all(len(list(c.load())) >= 6 for n, c in CATEGORIES.items() if n != "scripts")
        assert len(list(CATEGORIES["scripts"].load())) >= 4

    def test_groups(self) -> None:
        found = groups()
        assert [g[0].category for g in found] == ["code", "chat", "tools", "calibration"]
        named = {d.id for g in found[:3] for d in g}
        assert named == {i for i in RESERVED if not i.startswith("scripts/")}
        (joined,) = found[3]
        assert len(joined.text.split("\n\n")) >= 4

    def chunks(self, folder: Path, text: list[Path] | None = None) -> np.ndarray[Any, Any]:
        wanted = MeasureRequest(engine="transformers")
        backend = Transformers(wanted)
        model = backend.prepare("a", folder, Silent())
        return calibration_chunks(backend, model, wanted, text)

    def test_four_texts_of_1024_tokens(self, original: Path, asked: Asked) -> None:
        found = self.chunks(original)
        assert found.shape == (4, 1024) and (found[:, 0] == 1).all()
        starts = [bytes((ids[1:40] - 3).clip(0).astype(np.uint8)) for ids in found]
        assert len(set(starts)) == 4

    def test_a_model_for_less(self, tmp_path: Path, asked: Asked) -> None:
        short = write_folder(tmp_path / "short", max_position_embeddings=300)
        assert self.chunks(short).shape == (4, 300)

    def test_in_the_models_template(self, original: Path, tmp_path: Path, asked: Asked) -> None:
        framed = Path(shutil.copytree(original, tmp_path / "framed"))
        (framed / "chat_template.jinja").write_text(TEMPLATE)
        found = self.chunks(framed)
        assert found.shape == (4, 1024)
        assert (found != self.chunks(original)).any()
        assert (found[1] == 1).sum() > 2  # the template's <s> as a control token, every turn

    def test_own_text(self, original: Path, text: Path, tmp_path: Path, asked: Asked) -> None:
        long = tmp_path / "long.txt"
        long.write_text(text.read_text("utf-8") * 3, encoding="utf-8")
        assert self.chunks(original, [long]).shape == (4, 1024)
        assert self.chunks(original, [text]).shape == (3, 1024)  # 4,000 bytes
        (tmp_path / "few.txt").write_text("too short")
        with pytest.raises(NybbleError, match="too little text to calibrate on") as caught:
            self.chunks(original, [tmp_path / "few.txt"])
        assert "9 tokens" in str(caught.value.seen) and caught.value.allowed
        assert caught.value.hint == "longer --text"


class TestCommand:
    """`nybble calibrate`, with the child in this process."""

    def test_writes_and_says_where(
        self, folder: Path, asked: Asked, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["calibrate", str(folder), "-q"]) == 0
        out, err = capsys.readouterr()
        assert out == f"calibrated on 4,096 tokens: {folder / NAME}\n" and err == ""
        assert (folder / NAME).is_file()

    def test_there_already(
        self, folder: Path, asked: Asked, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = folder / NAME
        path.write_text("mine")
        assert main(["calibrate", str(folder)]) == 1
        out, err = capsys.readouterr()
        assert out == "" and path.read_text() == "mine" and asked == []
        assert "there is a calibration already" in err and str(path) in err
        assert "  try:     --fresh replaces it" in err
        assert main(["calibrate", str(folder), "--fresh"]) == 0
        assert read_header(path).metadata["nybble.tokens"] == "4096"
        said = capsys.readouterr().err
        assert "loading the weights" in said and "calibrated on 4,096 tokens" in said

    def test_text_and_out(
        self, folder: Path, text: Path, tmp_path: Path, asked: Asked,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        out = tmp_path / "new" / "mine.safetensors"
        words = ["calibrate", str(folder), "--text", str(text), "--out", str(out), "-q"]
        assert main(words) == 0
        assert capsys.readouterr().out == f"calibrated on 3,072 tokens: {out}\n"
        assert not (folder / NAME).exists()

    def test_where_it_cannot_write(
        self, folder: Path, tmp_path: Path, asked: Asked, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Before any work is done for it."""
        (tmp_path / "file").touch()
        out = tmp_path / "file" / "c.safetensors"
        assert main(["calibrate", str(folder), "--out", str(out)]) == 1
        err = capsys.readouterr().err
        assert "cannot write to the calibration's folder" in err and str(out.parent) in err
        assert "  try:     --out FILE where you may write" in err and asked == []
