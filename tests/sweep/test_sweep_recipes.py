"""The recipes in deploy/: manifests that Kubernetes takes, and a batch script that runs."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from sweep_runs import merged, run, write_sweep

from nybble.sweep.spec import read

DEPLOY = Path(__file__).parents[2] / "deploy"
SCRIPT = DEPLOY / "slurm-sweep.sh"
# Of KubeRay's RayJobSpec, RayClusterSpec and their group specs (ray-operator/apis/ray/v1).
JOB = {"entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished",
       "rayClusterSpec"}  # fmt: skip
GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


def validate(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def documents() -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / "kuberay-sweep.yaml").read_text(encoding="utf-8")))


def test_pods_of_the_ray_job_are_what_kubernetes_takes() -> None:
    config, job = documents()
    validate(config)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["spec"].keys() == JOB
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        assert group.keys() <= GROUP
        assert all(isinstance(v, str) for v in group["rayStartParams"].values())
        validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"},
                  "spec": group["template"]["spec"]})  # fmt: skip
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert len({g["template"]["spec"]["containers"][0]["image"] for g in groups}) == 1
    assert f"ray:{cluster['rayVersion']}-" in (DEPLOY / "kuberay-sweep.yaml").read_text()


def test_the_sweep_of_the_ray_job_is_one(tmp_path: Path) -> None:
    config, job = documents()
    (tmp_path / "sweep.toml").write_text(config["data"]["sweep.toml"])
    spec = read(tmp_path / "sweep.toml")
    assert spec.place.startswith("s3://")
    worker = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert spec.running.threads <= int(worker["containers"][0]["resources"]["limits"]["cpu"])
    assert {Path(m).parent for m in spec.grids[0].model} == {Path("/models")}


def test_the_batch_script_is_clean() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if checker is None:
        pytest.skip("no shellcheck")
    done = subprocess.run([checker, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def fake(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """An allocation of two nodes that are both this machine: srun runs a command once."""
    programs = tmp_path / "bin"
    programs.mkdir()
    host = socket.gethostbyname(socket.gethostname())
    fake(
        programs, "scontrol", f'[[ "$*" == "show hostnames pair" ]] && printf "{host}\\n{host}\\n"'
    )
    fake(programs, "srun", f'echo "srun $*" >> {tmp_path}/calls\n'
         'while [[ $1 == --* ]]; do shift; done\nexec "$@"')  # fmt: skip
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "SLURM_JOB_NODELIST": "pair",
            "SLURM_JOB_ID": str(os.getpid()), "SLURM_CPUS_PER_TASK": "1",
            "SLURM_MEM_PER_NODE": "4096"}  # fmt: skip


def test_the_batch_script_says_how_it_is_called(slurm: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(["bash", str(SCRIPT)], env=slurm, capture_output=True, text=True)
    assert done.returncode == 2 and "usage: sbatch" in done.stderr
    assert not (tmp_path / "calls").exists()


@pytest.mark.slow
def test_the_batch_script_runs_a_sweep_on_two_nodes(slurm: dict[str, str], folder: Path) -> None:
    pytest.importorskip("ray")
    write_sweep(folder, "out")
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            ["bash", str(SCRIPT), "out.toml", "--json"], cwd=folder, env=slurm,
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(timeout=200)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        log.seek(0)
        text = log.read().decode()
    assert code == 0, text
    assert '"executor": "Ray"' in text and '"scored": 4' in text
    head, others = (folder / "calls").read_text().splitlines()
    assert "--nodelist=" in head and "ray start --head" in head and "--memory 3865470" in head
    assert "--nodes=1 --ntasks=1 --exclude=" in others and "ray start --address" in others
    assert not Path(f"/tmp/ray-{os.getpid()}").exists()
    write_sweep(folder, "here")
    run(folder / "here.toml")
    ours = {k: v for k, v in merged(folder / "out").items() if "report" not in k}
    ours = {k: v for k, v in ours.items() if not k.endswith("manifest.json")}
    assert ours == merged(folder / "here")


def test_the_toml_of_the_page_is_read_as_it_stands(tmp_path: Path) -> None:
    page = (DEPLOY.parent / "docs" / "sweep.md").read_text(encoding="utf-8")
    blocks = [b.partition("\n```")[0] for b in page.split("```toml\n")[1:]]
    assert blocks
    for block in blocks:
        tomllib.loads(block)
        (tmp_path / "sweep.toml").write_text(block)
        assert read(tmp_path / "sweep.toml").grids
