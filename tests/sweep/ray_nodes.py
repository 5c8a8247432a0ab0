"""A Ray cluster of several node processes on this machine."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import psutil
from sweep_runs import kill_tree

_SMALL = 100 << 20  # bytes of object store of a node; results are small


class Nodes:
    """A head without CPUs, and nodes that can be added and killed."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        # Ray keeps a cluster's address here whatever its folder is, and does not make the place.
        os.makedirs("/tmp/ray", exist_ok=True)
        # Sockets have paths of at most 107 bytes, so not below pytest's folder.
        self._folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False,
                            "object_store_memory": _SMALL, "temp_dir": self._folder},
        )  # fmt: skip
        self.address: str = self._cluster.address

    def add(self, cpus: int = 1, env: Mapping[str, str] | None = None, **more: Any) -> Any:
        """Start a node; `env` is of its workers."""
        before = dict(os.environ)
        os.environ.update(env or {})
        try:
            return self._cluster.add_node(num_cpus=cpus, object_store_memory=_SMALL, **more)
        finally:
            os.environ.clear()
            os.environ.update(before)

    def busy(self, node: Any) -> bool:
        """Whether a group is being scored there: Ray gives a worker the name of its task."""
        for process in psutil.Process(_daemon(node)).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # it has just ended
                title = " ".join(process.cmdline())
                if title.startswith("ray::") and " at " in title:
                    return True
        return False

    def kill(self, node: Any) -> None:
        """SIGKILL the node's daemon and its workers at once."""
        kill_tree(_daemon(node))

    def close(self) -> None:
        self._cluster.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)


def _daemon(node: Any) -> int:
    (info,) = node.all_processes["raylet"]
    pid: int = info.process.pid
    return pid


@contextmanager
def nodes() -> Iterator[Nodes]:
    """A cluster that ends with the block, whatever happens in it."""
    found = Nodes()
    try:
        yield found
    finally:
        found.close()
