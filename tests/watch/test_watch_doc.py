"""The workflow in docs/watch.md: it is YAML, and its script does what the page says."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

PAGE = (Path(__file__).parents[2] / "docs" / "watch.md").read_text(encoding="utf-8")


def _script() -> str:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    steps = yaml.safe_load(text)["jobs"]["watch"]["steps"]
    script: str = steps[-1]["run"]
    assert "${{" not in script  # notes must not become part of a shell script
    return script


@pytest.mark.parametrize(
    ("code", "report", "issue", "calls"),
    [
        (0, "table", "", []),
        (1, "table", "", ["issue list", "issue create"]),
        (1, "table", "7", ["issue list", "issue edit 7"]),
        (1, "", "", []),
        (2, "table", "", []),
    ],
)
def test_the_script(tmp_path: Path, code: int, report: str, issue: str, calls: list[str]) -> None:
    programs = {
        "nybble": f"printf '%s' '{report}'; echo patch > drift.patch; exit {code}",
        "gh": f'echo "$@" >> calls; case $2 in list) printf "%s" "{issue}";; esac',
    }
    for name, body in programs.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        path.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-e", "-c", _script()], cwd=tmp_path, env=env, timeout=30)
    log = tmp_path / "calls"
    made = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    assert [line.startswith(call) for line, call in zip(made, calls, strict=True)] == [True] * len(
        calls
    )
    assert done.returncode == (0 if calls or code == 0 else code)
    if calls:
        lines = (tmp_path / "body.md").read_text(encoding="utf-8").splitlines()
        assert lines[0] == "    table" and lines[-1] == "    patch"
        assert all(line.startswith("    ") for line in lines)


def test_every_option_and_variable_is_on_the_page() -> None:
    from nybble.cli.watch import watch

    names = {name for option in watch.params for name in option.opts if name.startswith("--")}
    assert names - {"--quiet"} - set(re.findall(r"--[a-z-]+", PAGE)) == set()
    for name in ("NYBBLE_INDEX_URL", "NYBBLE_RELEASES_URL", "NYBBLE_CACHE"):
        assert name in PAGE
