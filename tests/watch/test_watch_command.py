"""`nybble watch` as a user runs it, against a server on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from feed_samples import NOTES, atom, index

from nybble.engines.known.registry import engine

LLAMA = engine("llama.cpp")


@pytest.fixture
def nybble(web: Any, tmp_path: Path) -> Any:
    def run(*args: object, **more: str) -> subprocess.CompletedProcess[str]:
        addresses = {"NYBBLE_INDEX_URL": web.index_url, "NYBBLE_RELEASES_URL": web.releases_url}
        env = {
            **os.environ,
            **addresses,
            "COLUMNS": "150",
            "NYBBLE_CACHE": str(tmp_path / "cache"),
            **more,
        }
        done = subprocess.run([sys.executable, "-m", "nybble", "watch", *map(str, args)],
                              env=env, cwd=tmp_path, capture_output=True, text=True,
                              timeout=60)  # fmt: skip
        assert "Traceback" not in done.stderr
        return done

    return run


def _serve(web: Any, build: int) -> None:
    for package in LLAMA.packages:
        web.answer(f"/pypi/{package}/json", index(package, f"2026.11.{build}"))
    web.answer(f"/{LLAMA.repository}/releases.atom",
               atom(LLAMA.repository, (f"b{build}", "2026-11-20", NOTES)))  # fmt: skip


def test_drift(web: Any, nybble: Any, tmp_path: Path) -> None:
    _serve(web, 99999)
    done = nybble("llama.cpp", "--patch", "drift.patch")
    assert done.returncode == 1
    assert "newest is b99999; 1 newer release" in done.stdout and "[KV flag" in done.stdout
    assert "to read: " in done.stdout and "patch: drift.patch" in done.stderr
    text = (tmp_path / "drift.patch").read_text(encoding="utf-8")
    assert '+    version = "b99999"' in text
    root = Path(__file__).parents[2]
    if (root / ".git").exists():
        check = ["git", "apply", "--check", str(tmp_path / "drift.patch")]
        assert subprocess.run(check, cwd=root, capture_output=True).returncode == 0


def test_no_drift(web: Any, nybble: Any, tmp_path: Path) -> None:
    _serve(web, int(LLAMA.version.lstrip("b")))
    done = nybble("llama.cpp", "--patch", "drift.patch", "--quiet")
    assert done.returncode == 0 and LLAMA.version in done.stdout
    assert "nothing to patch" in done.stderr and not (tmp_path / "drift.patch").exists()


def test_a_narrow_terminal(web: Any, nybble: Any) -> None:
    _serve(web, 99999)
    del web.routes[f"/{LLAMA.repository}/releases.atom"]
    done = nybble("llama.cpp", "-q", COLUMNS="80")
    assert max(map(len, done.stdout.splitlines())) <= 80 and "\u2026" not in done.stdout
    assert f"release feed, nothing known: {LLAMA.repository}" in done.stdout


def test_json_owns_stdout(web: Any, nybble: Any) -> None:
    _serve(web, 99999)
    web.answer(f"/{LLAMA.repository}/releases.atom", b"<feed>")
    done = nybble("llama.cpp", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1 and found["engines"][0]["newest"] == "b99999"
    assert "the release feed is no XML" in done.stderr.replace("\n", " ")


def test_offline(web: Any, nybble: Any) -> None:
    done = nybble("llama.cpp", "--offline")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no address answered, and no copy is kept" in done.stderr and not web.asked
    _serve(web, 99999)
    nybble("llama.cpp")
    asked = len(web.asked)
    done = nybble("llama.cpp", "--offline")
    assert done.returncode == 1 and "newest is b99999" in done.stdout
    assert "package index, copies up to" in done.stdout
    assert "offline: not asked" in done.stderr and len(web.asked) == asked


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["lama.cpp"], "nybble engines llama.cpp"),
        (["llama.cpp", "--index-url", "http://x/json"], "{package}"),
        (["llama.cpp", "--releases-url", "ftp://x/{repository}"], "no address of the web"),
        (["llama.cpp", "--timeout", "0"], "--timeout takes seconds"),
    ],
)
def test_mistakes(nybble: Any, args: list[str], said: str) -> None:
    done = nybble(*args)
    assert (done.returncode, done.stdout) == (1, "") and said in done.stderr


def test_a_patch_that_cannot_be_written(web: Any, nybble: Any) -> None:
    _serve(web, 99999)
    done = nybble("llama.cpp", "--patch", "no/such/folder/x.patch")
    assert done.returncode == 1 and "the patch cannot be written" in done.stderr
