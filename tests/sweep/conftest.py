"""S3's protocol on loopback, and models to sweep over."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sweep_runs import FORTY, finish, merged, write_sweep

from nybble.sweep import work

_S3 = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A bucket's address; moto serves it, and the environment says where, also to children."""
    server_module = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    before = {name: os.environ.get(name) for name in _S3}
    os.environ.update(zip(_S3, (f"http://{host}:{port}", "any", "any", "us-east-1"), strict=True))
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("sweeps")
    yield "s3://sweeps"
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, make_tiny: Callable[..., Path]) -> Path:
    """A folder with a.gguf and b.gguf, which differ in weights and layers; not to be changed."""
    folder = tmp_path_factory.mktemp("sweep-models")
    make_tiny(folder / "a.gguf", seed=1, name="tiny a")
    make_tiny(folder / "b.gguf", seed=2, n_layer=3, name="tiny b")
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    """A folder of the test's own with both models."""
    for path in models.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.fixture(scope="session")
def undisturbed(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Forty cells by one worker of this machine: what every other way must find."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for path in models.iterdir():
        shutil.copy(path, folder)
    write_sweep(folder, "out", **FORTY)
    finish(folder, "out", "--workers", "1")
    found = merged(folder / "out")
    assert {p.rpartition("/")[2] for p in found if "/rows/" not in p} == {
        "summary.json", "report.md", "report.html", "manifest.json",
    }  # fmt: skip
    return found


@pytest.fixture(autouse=True)
def _nothing_left_open() -> Iterator[None]:
    yield
    work.close()
