"""Packages that training needs: named where they are missing, silent where they are not."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nybble.errors import MissingExtraError
from nybble.hardening.names import INSTALL
from nybble.hardening.train.packages import PACKAGES, need
from nybble.hardening.train.request import TrainRequest


def python(code: str, *absent: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh process that cannot import some packages."""
    hide = f"import sys\nfor name in {absent}: sys.modules[name] = None\n"
    return subprocess.run(
        [sys.executable, "-c", hide + code], capture_output=True, text=True, timeout=120
    )


def without(monkeypatch: pytest.MonkeyPatch, *absent: str) -> None:
    real = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> Any:
        return None if name in absent else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


class TestNeed:
    def test_for_any_training(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        without(monkeypatch, "accelerate", "torch")
        with pytest.raises(MissingExtraError) as caught:
            need(TrainRequest(tmp_path))
        assert caught.value.seen == "missing: torch, accelerate"
        assert (caught.value.hint, caught.value.allowed) == (
            INSTALL, f"{', '.join(PACKAGES)} of this environment",
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("name", "log", "asked"),
        [
            ("gguf", "csv", {"gguf": True}),
            ("torchao", "csv", {"weights": True}),
            ("tensorboard", "tensorboard", {}),
        ],
    )
    def test_only_where_it_is_used(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        log: str,
        asked: dict[str, bool],
    ) -> None:
        monkeypatch.setattr("nybble.hardening.train.packages.PACKAGES", ())
        without(monkeypatch, "gguf", "torchao", "tensorboard")
        need(TrainRequest(tmp_path))
        with pytest.raises(MissingExtraError) as caught:
            need(TrainRequest(tmp_path, log=log), **asked)
        assert caught.value.seen == f"missing: {name}"


def test_a_request_needs_none() -> None:
    done = python(
        "import nybble.hardening.train.packages as p\n"
        "from pathlib import Path\n"
        "from nybble.hardening.train.request import TrainRequest\n"
        "TrainRequest(Path('x'), log='tensorboard')\n",
        "torch", "accelerate", "transformers", "torchao", "tensorboard", "safetensors",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("module", "absent"),
    [("processes", "accelerate"), ("weights", "torchao"), ("student", "transformers")],
)
def test_modules_that_use_one_name_it(module: str, absent: str) -> None:
    pytest.importorskip("torch")
    code = (
        "import importlib.util\n"
        "real = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda n, p=None: None if n == {absent!r} else real(n, p)\n"
        f"import nybble.hardening.train.{module}\n"
    )
    error = python(code, absent).stderr.partition("nybble.errors.MissingExtraError: ")[2]
    assert absent in error and "pip install" in error


def test_nothing_on_the_terminal() -> None:
    """torchao and torch warn of each other when they are imported."""
    for name in ("torchao", "accelerate", "transformers"):
        pytest.importorskip(name)
    done = python("import nybble.hardening.train.student, nybble.hardening.train.weights")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
