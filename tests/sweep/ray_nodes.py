"""A Ray cluster of several node processes on this machine."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sweep_runs import kill_tree

_SMALL = 100 << 20  # bytes of object store of a node; results are small


class Nodes:
    """A head without CPUs, and nodes that can be added and killed."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

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

    @staticmethod
    def kill(node: Any) -> None:
        """SIGKILL the node's daemon and its workers at once."""
        for kind in ("raylet",):
            for info in node.all_processes[kind]:
                kill_tree(info.process.pid)

    def close(self) -> None:
        self._cluster.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def nodes() -> Iterator[Nodes]:
    """A cluster that ends with the block, whatever happens in it."""
    found = Nodes()
    try:
        yield found
    finally:
        found.close()
