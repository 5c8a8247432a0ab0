"""Tasks on a Ray cluster: Ray places them, and tries them on another node when a node dies."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from nybble.errors import MissingExtraError, NybbleError
from nybble.sweep.executor import Listener, Needs, Task
from nybble.sweep.place import INSTALL

_CONNECT = 5.0  # seconds that an address has to answer
_SETTINGS = b"\x04"  # type of HTTP/2's first frame, which gRPC sends at once
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _SETTINGS + bytes(5)
_POLL = 1.0
_QUIET = 60.0  # seconds without news after which lost nodes are spoken of


class RayExecutor:
    """One Ray task for each task, with the CPUs, GPUs and memory that the plan says.

    Args:
        address: "auto" for the cluster this node is part of (RAY_ADDRESS or a running one), else
            one that is started for this run; HOST:PORT or ray://HOST:PORT for another.
        attempts: how often a task is tried whose process or node died.

    Raises:
        MissingExtraError: Ray is not installed.
        NybbleError: no Ray at that address.
    """

    name = "Ray"

    def __init__(self, address: str = "auto", attempts: int = 2) -> None:
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError("a sweep on Ray needs Ray", seen="no package ray",
                                    hint=INSTALL) from error  # fmt: skip
        self._ray = ray
        self._attempts = attempts
        self._own = not ray.is_initialized()
        if self._own:
            self._connect(address)

    def _connect(self, address: str) -> None:
        ray, quiet = self._ray, {"log_to_driver": False, "logging_level": "ERROR"}
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            if address == "auto":
                try:
                    ray.init(address="auto", **quiet)
                except ConnectionError:
                    ray.init(include_dashboard=False, **quiet)
                return
            _answers(address)
            ray.init(address=address, **quiet)
        except NybbleError:
            raise
        except Exception as error:  # Ray raises many kinds for an address that is not one
            raise NybbleError(
                "cannot join the Ray cluster",
                seen=f"{address}: {type(error).__name__}: {str(error).splitlines()[0][:200]}",
                allowed="HOST:PORT of its head (6379), or ray://HOST:10001",
                hint="ray status tells whether it runs; where it was started with a token, set "
                "RAY_AUTH_MODE=token and the same token here",
            ) from error

    @property
    def workers(self) -> int:
        """CPUs of the cluster now; how many tasks that is depends on their threads."""
        total: dict[str, float] = self._ray.cluster_resources()  # type: ignore[no-untyped-call]
        return int(total.get("CPU", 0))

    def fits(self, needs: Needs) -> str | None:
        """Against the largest living node."""
        known: list[dict[str, Any]] = self._ray.nodes()  # type: ignore[no-untyped-call]
        nodes = [n["Resources"] for n in known if n["Alive"]]
        if any(_fits(node, needs) for node in nodes):
            return None
        if not nodes:
            return "the Ray cluster has no living node"
        largest = max(nodes, key=lambda n: (  # of those that lack the least
            n.get("GPU", 0) >= needs.gpus, n.get("CPU", 0) >= needs.cpus, n.get("memory", 0),
        ))  # fmt: skip
        return (
            f"it needs {_spell(needs.cpus, needs.gpus, needs.memory)}, and no node has that; the "
            "largest has "
            f"{_spell(largest.get('CPU', 0), largest.get('GPU', 0), largest.get('memory', 0))}"
        )

    def run(self, tasks: Sequence[Task], listener: Listener) -> None:
        """Run all tasks; those of one model are handed in one after the other."""
        function = self._ray.remote(_perform)
        waiting: dict[Any, Task] = {}
        for task in sorted(tasks, key=lambda t: (t.model, -t.seconds)):
            options = {
                "num_cpus": task.needs.cpus, "max_retries": self._attempts - 1,
                "name": task.name, "scheduling_strategy": "DEFAULT",
            }  # fmt: skip
            if task.needs.gpus:
                options["num_gpus"] = task.needs.gpus
            if task.needs.memory:
                options["memory"] = task.needs.memory
            waiting[function.options(**options).remote(task.payload)] = task
        silent = 0.0
        try:
            while waiting:
                ready, _ = self._ray.wait(list(waiting), timeout=_POLL)
                silent = 0.0 if ready else silent + _POLL
                if silent >= _QUIET:
                    silent = 0.0
                    self._speak(list(waiting.values()), listener)
                for ref in ready:
                    self._finish(ref, waiting.pop(ref), listener)
        except BaseException:
            for ref in waiting:
                self._ray.cancel(ref, force=True)
            raise

    def _finish(self, ref: Any, task: Task, listener: Listener) -> None:
        try:
            reply: dict[str, Any] = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            listener.failed(task, _told(error))
            return
        if "error" in reply:
            detail = {k: reply["error"][k] for k in ("what", "seen", "allowed", "hint")}
            what = detail.pop("what")
            listener.failed(task, NybbleError(what, **detail))
        else:
            listener.done(task, reply)

    def _speak(self, tasks: Sequence[Task], listener: Listener) -> None:
        """Say so where nodes are gone and what waits can run nowhere."""
        lost = [t for t in tasks if self.fits(t.needs)]
        if lost:
            listener.note(f"{len(lost)} groups wait for a node: {self.fits(lost[0].needs)}")

    def close(self) -> None:
        """Leave the cluster; one that was started for this run ends."""
        if self._own:
            self._ray.shutdown()


def _perform(payload: dict[str, Any]) -> dict[str, Any]:
    """On the node. Errors a user can act on come back as data, with the node's name."""
    node = socket.gethostname()
    try:
        from nybble.engines.child import error_header
        from nybble.sweep.work import IDLE, perform
    except ImportError as error:
        return {"error": {"what": "a worker lacks nybble", "seen": f"{node}: {error}",
                          "allowed": None, "hint": f"{INSTALL} on every node"}}  # fmt: skip
    try:
        return perform(payload, lambda event: None, linger=IDLE)
    except NybbleError as error:
        told = error_header(error)
        told["seen"] = f"on {node}: {told['seen']}" if told["seen"] else f"on {node}"
        return {"error": told}


def _told(error: Exception) -> NybbleError:
    """What Ray says of a task that it gave up."""
    text = str(error).strip().splitlines()
    cause = next((line for line in reversed(text) if "Error" in line), text[0] if text else "")
    if "ModuleNotFoundError" in cause:
        missing = cause.rpartition("ModuleNotFoundError: ")[2][:100]
        return NybbleError(f"a worker lacks a package: {missing}", seen=cause[:300],
                           hint=f"{INSTALL} on every node, the same version")  # fmt: skip
    return NybbleError(f"Ray gave the group up: {type(error).__name__}", seen=cause[:300],
                       hint="--retry-failed once the nodes are well")  # fmt: skip


def _fits(node: dict[str, float], needs: Needs) -> bool:
    return (
        node.get("CPU", 0) >= needs.cpus
        and node.get("GPU", 0) >= needs.gpus
        and node.get("memory", 0) >= needs.memory
    )


def _spell(cpus: float, gpus: float, memory: float) -> str:
    cards = f", {gpus:g} GPU{'' if gpus == 1 else 's'}" if gpus else ""
    return f"{cpus:g} CPU{'' if cpus == 1 else 's'}{cards} and {memory / 2**30:.1f} GiB"


def _answers(address: str) -> None:
    """Ask the port first: Ray itself tries for minutes where nobody is, or somebody else.

    Raises:
        NybbleError: nobody listens there.
    """
    parts = urlsplit(address if "://" in address else f"ray-gcs://{address}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if not parts.hostname or (port is None and "://" not in address):
        raise NybbleError("not an address of Ray", seen=address,
                          allowed="auto, HOST:6379 or ray://HOST:10001",
                          hint="nybble sweep FILE --ray ADDRESS, the file first")  # fmt: skip
    try:
        with socket.create_connection((parts.hostname, port or 10001), timeout=_CONNECT) as there:
            there.sendall(_HTTP2)
            # With TLS it waits for more and says nothing; then Ray itself finds out.
            if os.environ.get("RAY_USE_TLS", "0") == "0" and there.recv(9)[3:4] != _SETTINGS:
                raise OSError("what listens there is not Ray")
    except OSError as error:
        raise NybbleError(
            "no Ray at this address", seen=f"{address}: {error}",
            allowed="HOST:6379 of its head, or ray://HOST:10001",
            hint="ray start --head on one node; ray status tells its address",
        ) from error  # fmt: skip
