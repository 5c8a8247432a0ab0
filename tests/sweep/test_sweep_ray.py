"""Sweeps on a real Ray cluster of several node processes; one is killed, and the driver too."""

from __future__ import annotations

import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from ray_nodes import Nodes, nodes
from sweep_runs import FORTY, cells, merged, said, start, wait_for, write_sweep

from nybble.errors import MissingExtraError, NybbleError
from nybble.results.records import from_json
from nybble.sweep import spec as specs
from nybble.sweep.drive import Sweep
from nybble.sweep.executor import Needs
from nybble.sweep.place import open_place
from nybble.sweep.ray_executor import RayExecutor, _fits, _perform, _told

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    """A head without CPUs and two nodes with one each."""
    with nodes() as found:
        found.add()
        found.add()
        yield found


def sweep(folder: Path, cluster: Nodes, name: str = "out", code: int = 0) -> None:
    process = start("sweep", f"{name}.toml", "--ray", cluster.address, cwd=folder)
    assert process.wait(timeout=280) == code, said(folder)


@pytest.mark.slow
def test_ray_finds_what_this_machine_finds(
    folder: Path, cluster: Nodes, undisturbed: dict[str, bytes]
) -> None:
    write_sweep(folder, "out", **FORTY)
    sweep(folder, cluster)
    assert merged(folder / "out") == undisturbed
    before = cells(folder / "out")
    sweep(folder, cluster)
    assert cells(folder / "out") == before


@pytest.mark.slow
def test_a_node_is_killed_and_then_the_driver(
    folder: Path, cluster: Nodes, undisturbed: dict[str, bytes]
) -> None:
    out = folder / "out"
    victim = cluster.add()  # a third node, with work of its own
    write_sweep(folder, "out", **FORTY)
    driver = start("sweep", "out.toml", "--ray", cluster.address, cwd=folder)
    wait_for(lambda: len(cells(out)) >= 20 and cluster.busy(victim))
    cluster.kill(victim)
    after_node = cells(out)
    wait_for(lambda: len(cells(out)) >= len(after_node) + 20)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = cells(out)
    total = sum("/rows/" in name for name in undisturbed)
    assert len(before) < total and not list(out.glob("runs/*/report.html"))
    assert after_node.items() <= before.items()
    sweep(folder, cluster)
    assert before.items() <= cells(out).items()  # same files: not one was written again
    assert len(cells(out)) == total
    assert merged(out) == undisturbed


@pytest.mark.slow
def test_a_lost_node_alone_costs_nothing_but_time(
    folder: Path, cluster: Nodes, undisturbed: dict[str, bytes]
) -> None:
    out, victim = folder / "out", cluster.add()
    write_sweep(folder, "out", **FORTY)
    driver = start("sweep", "out.toml", "--ray", cluster.address, cwd=folder)
    wait_for(lambda: len(cells(out)) >= 20 and cluster.busy(victim))
    before = cells(out)
    cluster.kill(victim)
    assert driver.wait(timeout=280) == 0, said(folder)
    assert before.items() <= cells(out).items()
    assert merged(out) == undisturbed


@pytest.mark.slow
def test_an_object_store_holds_what_a_folder_holds(
    folder: Path, s3: str, undisturbed: dict[str, bytes]
) -> None:
    # Workers find the store's address in their environment, which s3 has set before they start.
    with nodes() as fresh:
        fresh.add()
        fresh.add()
        write_sweep(folder, f"{s3}/{folder.name}", **FORTY)
        sweep(folder, fresh, folder.name)
    place = open_place(f"{s3}/{folder.name}")
    wanted = {k: v for k, v in undisturbed.items()
              if "/rows/" in k or k.endswith("summary.json")}  # fmt: skip
    assert {k: place.read(k) for k in wanted} == wanted
    for name in {k.split("/")[1] for k in wanted}:
        there = {f"runs/{name}/rows/{n}" for n in place.names(f"runs/{name}/rows")}
        assert there == {k for k in wanted if k.startswith(f"runs/{name}/rows/")}


@pytest.mark.slow
def test_a_cluster_without_the_memory_or_the_package(folder: Path) -> None:
    blocked = folder / "blocked"
    blocked.mkdir()
    # Workers of this node start as on a machine where nybble is not installed.
    (blocked / "sitecustomize.py").write_text(
        "import sys\nclass No:\n    def find_spec(self, name, *rest):\n"
        "        if name.split('.')[0] == 'nybble':\n"
        "            raise ModuleNotFoundError(\"No module named 'nybble'\", name='nybble')\n"
        "sys.meta_path.insert(0, No())\n"
    )
    write_sweep(folder, "out", context="[64]")
    with nodes() as small:
        small.add(memory=200 << 20)
        sweep(folder, small, code=1)
        words = " ".join(said(folder).split())
        assert "it needs 1 CPU and 0.4 GiB, and no node has that; the largest has 1 CPU" in words
        summary = next((folder / "out").glob("runs/*/summary.json"))
        rows = [r for r in from_json(summary.read_text()).rows if r.role == "candidate"]
        assert [r.status for r in rows] == ["failed"] and "no node has that" in str(rows[0].error)
        shutil.rmtree(folder / "out")
        small.add(env={"PYTHONPATH": str(blocked)})
        sweep(folder, small, code=1)
        words = " ".join(said(folder).split())
        assert "a worker lacks a package: No module named 'nybble'" in words


def test_addresses_where_no_ray_is() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            with pytest.raises(NybbleError, match="no Ray at this address") as caught:
                RayExecutor(address)
            assert address in str(caught.value.seen) and "ray start" in str(caught.value.hint)
    for address in ("head", "head:port", "ray://", "", "ray://:10001"):
        with pytest.raises(NybbleError, match="not an address of Ray") as caught:
            RayExecutor(address)
        assert caught.value.seen == address


def test_another_server_is_not_taken_for_ray() -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(NybbleError, match="no Ray at this address") as caught:
                RayExecutor(f"127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
    assert "what listens there is not Ray" in str(caught.value.seen)


def test_without_ray_the_install_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError) as caught:
        RayExecutor()
    assert caught.value.hint == 'pip install "nybble[ray]"'


def test_errors_of_a_worker_name_its_node(folder: Path) -> None:
    path = write_sweep(folder, "out", model='"none.gguf"')
    made = Sweep(specs.read(path))
    reply = _perform(made._task(made.groups[0]).payload)
    assert "no such model file" in reply["error"]["what"]
    assert reply["error"]["seen"].startswith(f"on {socket.gethostname()}")


def test_what_ray_says_of_a_task_it_gave_up() -> None:
    lost = _told(
        RuntimeError("ray::perform\n  File x\nModuleNotFoundError: No module named 's3fs'")
    )
    assert lost.what == "a worker lacks a package: No module named 's3fs'"
    other = _told(ValueError(""))
    assert other.what == "Ray gave the group up: ValueError" and "--retry-failed" in str(other.hint)


@pytest.mark.parametrize(
    ("needs", "fits"),
    [
        (Needs(4, 0, 8 << 30), True), (Needs(5, 0, 0), False), (Needs(1, 0, 9 << 30), False),
        (Needs(1, 0.5, 0), True), (Needs(1, 2, 0), False),
    ],
)  # fmt: skip
def test_needs_against_a_node(needs: Needs, fits: bool) -> None:
    assert _fits({"CPU": 4.0, "GPU": 1.0, "memory": float(8 << 30)}, needs) is fits
