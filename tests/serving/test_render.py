"""Launches written down: they run, parse, name no secret and open no door."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from nybble.engines.known.base import KEY, ConfigFile, Launch
from nybble.errors import NybbleError
from nybble.formats.setting import parse
from nybble.planning.request import CardChoice
from nybble.serving.deploy import Deployed, DeployRequest, deploy
from nybble.serving.render import FORMS, render, shell, written

SECRET = "not-to-be-written"


def deployed(**more: object) -> Deployed:
    given: dict[str, object] = {
        "model": "gemma-4-31b-qat", "setting": parse("q4_0/q4_0-norot"), "users": 2,
        "cards": CardChoice(name="rtx-4090"), "keyed": True, **more,
    }  # fmt: skip
    return deploy(DeployRequest(**given))  # type: ignore[arg-type]


def dumping(folder: Path, name: str) -> None:
    """A program that writes down its arguments and environment."""
    path = folder / name
    path.write_text('#!/bin/sh\nfor a in "$@"; do printf "%s\\n" "$a"; done > args\nenv > env\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_the_script_runs_the_command_word_for_word(tmp_path: Path) -> None:
    dumping(tmp_path, "llama-server")
    found = deployed(name="it's a name; $(touch x) `y`")
    (tmp_path / "run.sh").write_text(render(found, "shell"))
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", KEY: SECRET}
    subprocess.run(["sh", "run.sh"], cwd=tmp_path, env=env, check=True, timeout=30)
    assert (tmp_path / "args").read_text().splitlines() == list(found.launch().command[1:])
    told = (tmp_path / "env").read_text().splitlines()
    assert f"LLAMA_API_KEY={SECRET}" in told and "LLAMA_ATTN_ROT_DISABLE=1" in told
    assert not (tmp_path / "x").exists()


def test_the_script_stops_without_the_key(tmp_path: Path) -> None:
    dumping(tmp_path, "llama-server")
    (tmp_path / "run.sh").write_text(render(deployed(), "shell"))
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "run.sh"], cwd=tmp_path, env=env, capture_output=True, timeout=30)
    assert done.returncode != 0 and not (tmp_path / "args").exists()


def test_files_come_out_as_they_are(tmp_path: Path) -> None:
    text = "a: $HOME\nEOF\n'b'\\\n"
    script = shell(Launch(("true",), files=(ConfigFile("config.yml", text),)))
    subprocess.run(["sh", "-c", script], cwd=tmp_path, check=True, timeout=30)
    assert (tmp_path / "config.yml").read_text() == text


@pytest.mark.parametrize("form", FORMS)
def test_no_form_has_a_secret(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, SECRET)
    assert SECRET not in render(deployed(), form)


def test_compose_opens_loopback_only() -> None:
    made = yaml.safe_load(render(deployed(keyed=False), "compose"))
    service = made["services"]["nybble"]
    assert service["ports"] == ["127.0.0.1:8080:8080"]
    at = service["command"].index("--host")
    assert service["command"][at + 1] == "0.0.0.0"  # inside the container
    assert "environment" in service and "LLAMA_API_KEY" not in service["environment"]


def test_compose_on_ipv6() -> None:
    made = yaml.safe_load(render(deployed(host="[::1]", keyed=False), "compose"))
    assert made["services"]["nybble"]["ports"] == ["[::1]:8080:8080"]


def test_compose_mounts_a_local_model_read_only(tiny_model: Path) -> None:
    found = deployed(model=str(tiny_model), setting=parse("q8_0/q8_0"), users=1)
    service = yaml.safe_load(render(found, "compose"))["services"]["nybble"]
    assert service["volumes"] == [f"{tiny_model.parent.resolve()}:/models:ro"]
    assert f"/models/{tiny_model.name}" in service["command"]


def test_kubernetes_takes_the_key_from_a_secret() -> None:
    documents = list(yaml.safe_load_all(render(deployed(keyed=False), "kubernetes")))
    assert [d["kind"] for d in documents] == ["Deployment", "Service"]
    container = documents[0]["spec"]["template"]["spec"]["containers"][0]
    variables = {v["name"]: v for v in container["env"]}
    assert "secretKeyRef" in variables[KEY]["valueFrom"]
    assert variables["LLAMA_API_KEY"]["value"] == f"$({KEY})"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 1}


@pytest.mark.parametrize(
    ("engine", "kv", "card"),
    [("llama.cpp", "q4_0/q4_0", "rtx-4090"), ("vllm", "fp8_e4m3/fp8_e4m3", "2xh100-sxm"),
     ("sglang", "bf16/bf16", "h100-sxm"),
     ("exllamav3", "exl3_4/exl3_4", "rtx-3090")],
)  # fmt: skip
def test_manifests_are_what_kubernetes_takes(engine: str, kv: str, card: str) -> None:
    found = deployed(engine=engine, setting=parse(kv), cards=CardChoice(name=card), users=1)
    for document in yaml.safe_load_all(render(found, "kubernetes")):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_no_service_without_a_key(tiny_model: Path) -> None:
    found = deployed(model=str(tiny_model), engine="ollama", setting=parse("q8_0/q8_0"),
                     keyed=False)  # fmt: skip
    with pytest.raises(NybbleError, match="no API key"):
        render(found, "kubernetes")
    assert yaml.safe_load(render(found, "compose"))["services"]["nybble"]["ports"] == [
        "127.0.0.1:8080:8080"
    ]


def test_json_is_everything() -> None:
    made = json.loads(render(deployed(), "json"))
    assert made["kv"] == "q4_0/q4_0-norot" and made["sequences"] == 2
    assert made["env"]["LLAMA_API_KEY"] == f"${KEY}"


def test_a_folder_is_written_once(tmp_path: Path) -> None:
    out = tmp_path / "deployment"
    paths = written(deployed(), out)
    assert {p.name for p in paths} == {"run.sh", "launch.json", "compose.yaml", "kubernetes.yaml"}
    assert (out / "run.sh").stat().st_mode & stat.S_IXUSR
    before = (out / "run.sh").read_text()
    with pytest.raises(NybbleError, match="there already"):
        written(deployed(), out)
    assert (out / "run.sh").read_text() == before


def test_an_unknown_form() -> None:
    with pytest.raises(NybbleError, match="unknown form"):
        render(deployed(), "helm")
