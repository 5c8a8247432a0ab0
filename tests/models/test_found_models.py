"""Models of the hub cache, and fingerprints of what was found."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from model_folders import configure, refused, weights

from nybble.errors import ModelFileError
from nybble.models import content_hash
from nybble.models.checkpoint import resolve
from nybble.models.content_hash import file_sha256
from nybble.models.hub_cache import hub_cache, is_hub_id


@pytest.fixture
def cached(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Put the folder in a hub cache as revision `rev`, with files linked to blobs."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(rev: str, refs_main: str | None = None) -> Path:
        model = tmp_path / "hub" / "models--org--tiny"
        snapshot, blobs = model / "snapshots" / rev, model / "blobs"
        snapshot.mkdir(parents=True)
        blobs.mkdir(exist_ok=True)
        for file in folder.iterdir():
            shutil.copy(file, blobs / f"{rev}-{file.name}")
            (snapshot / file.name).symlink_to(f"../../blobs/{rev}-{file.name}")
        if refs_main is not None:
            (model / "refs").mkdir(exist_ok=True)
            (model / "refs" / "main").write_text(refs_main)
        return snapshot

    return put


class TestHub:
    def test_main_revision(self, cached: Callable[..., Path]) -> None:
        first = cached("aaaa", "aaaa")
        cached("bbbb")
        found = resolve("org/tiny")
        assert (found.path, found.name, found.kind) == (first, "org/tiny", "folder")

    @pytest.mark.parametrize("refs", [None, "", "gone", "../../..", "/", "a" * 500, "\xe9"])
    def test_newest_without_main(self, cached: Callable[..., Path], refs: str | None) -> None:
        cached("aaaa", refs)
        newest = cached("bbbb")
        os.utime(newest.parent / "aaaa", (1, 1))
        assert resolve("org/tiny").path == newest

    def test_unfinished(self, cached: Callable[..., Path]) -> None:
        snapshot = cached("aaaa")
        (snapshot / "model.safetensors").resolve().unlink()
        refused("org/tiny", "points to a file that is gone")
        (snapshot / "model.safetensors").unlink()
        refused("org/tiny", "no weights")

    def test_not_cached(self, cached: Callable[..., Path], tmp_path: Path) -> None:
        words = ("does not download", "config.json", "tokenizer.json", "model.safetensors")
        refused("org/other", *words, str(tmp_path / "hub"), "hf download org/other")
        refused("gpt2", *words)
        (tmp_path / "hub" / "models--org--empty" / "snapshots").mkdir(parents=True)
        refused("org/empty", *words)

    def test_a_path_goes_first(
        self, cached: Callable[..., Path], folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cached("aaaa")
        monkeypatch.chdir(folder.parent)
        shutil.copytree(folder, "org/tiny")
        assert resolve("org/tiny").path == Path("org/tiny")

    @pytest.mark.parametrize(
        ("names", "place"),
        [
            ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
            ({"HUGGINGFACE_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
            ({"HF_HUB_CACHE": "", "HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/hub"),
            ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
            ({"HOME": "/d"}, "/d/.cache/huggingface/hub"),
        ],
    )
    def test_place(
        self, names: dict[str, str], place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in names.items():
            monkeypatch.setenv(name, value)
        assert hub_cache() == Path(place)

    def test_ids(self) -> None:
        assert all(is_hub_id(t) for t in ("gpt2", "google/gemma-3-270m", "a_b/C.d-1"))
        no = ("", "a/b/c", "../x", "a/..", "/a", "a/", "a b/c", "a--b/c", "a..b/c", ".a/b", "é/b")
        assert not any(is_hub_id(t) for t in no)


class TestFingerprint:
    def test_gguf_is_its_own_sha256(self, tiny_model: Path, tmp_path: Path) -> None:
        expected = hashlib.sha256(tiny_model.read_bytes()).hexdigest()
        assert resolve(tiny_model).fingerprint(tmp_path / "cache") == expected

    def test_folder_changes_with_weights_and_config(self, folder: Path, tmp_path: Path) -> None:
        def now() -> str:
            return resolve(folder).fingerprint(tmp_path / "cache")

        first = now()
        assert len(first) == 64 and now() == first
        (folder / "tokenizer.json").write_text("{ }")
        assert now() == first
        weights(folder / "model.safetensors", "a", "b", fill=1)  # same size, same header
        second = now()
        configure(folder, rope_theta=5)
        assert len({first, second, now()}) == 3
        weights(folder / "model.safetensors", "a", "b")
        configure(folder)
        assert now() == first

    def test_place_does_not_matter(self, folder: Path, tmp_path: Path) -> None:
        other = shutil.copytree(folder, tmp_path / "other")
        cache = tmp_path / "cache"
        assert resolve(folder).fingerprint(cache) == resolve(other).fingerprint(cache)

    def test_remembered(
        self, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        digest = file_sha256(tiny_model, tmp_path)
        (note,) = (tmp_path / "sha256").iterdir()
        assert note.read_text() == digest
        monkeypatch.setattr(content_hash.hashlib, "file_digest", None)
        assert file_sha256(tiny_model, tmp_path) == digest
        monkeypatch.undo()
        note.write_text("damaged")
        assert file_sha256(tiny_model, tmp_path) == digest == note.read_text()

    def test_cache_that_cannot_be_written(self, tiny_model: Path, tmp_path: Path) -> None:
        (tmp_path / "cache").write_text("a file")
        assert len(file_sha256(tiny_model, tmp_path / "cache")) == 64

    def test_file_gone(self, folder: Path, tmp_path: Path) -> None:
        found = resolve(folder)
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelFileError, match="Cannot read the model"):
            found.fingerprint(tmp_path)
