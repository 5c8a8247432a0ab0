"""What a worker does, in a process of its own, here or on another node.

The last job stays open: groups of one model come one after the other, so its weights are loaded
once. A Ray worker that gets nothing more to do lets go of it after a while.
"""

from __future__ import annotations

import dataclasses
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from nybble.environment import hardware
from nybble.results.records import Measurement, to_json
from nybble.results.store import RunStore
from nybble.scoring.job import Job, Portion
from nybble.sweep.grid import Group, Run, groups_of
from nybble.sweep.place import Place, RemoteStore, open_place, read_json, write_json

IDLE = 20.0  # seconds after which an idle worker ends its engine
MERGED = "groups/merged.json"  # of a run: what its summary was made of
Tell = Callable[[dict[str, Any]], None]


class Relay:
    """Progress of a job, told to whoever waits for the present task."""

    def __init__(self) -> None:
        self.tell: Tell = lambda event: None
        self.notes: list[str] = []
        self._total, self._done, self._told = 1.0, 0.0, 0.0

    def stage(self, text: str) -> None:
        """A sign of life."""
        self.tell({"stage": text})

    def begin(self, text: str, total: float) -> None:
        """A new step."""
        self._total, self._done = max(total, 1.0), 0.0
        self.tell({"stage": text})

    def advance(self, done: float) -> None:
        """At most two events a second."""
        self._done += done
        now = time.monotonic()
        if now - self._told > 0.5:
            self._told = now
            self.tell({"share": min(1.0, self._done / self._total)})

    def note(self, text: str) -> None:
        """Kept for the group's record."""
        self.notes.append(text)


@dataclasses.dataclass
class Open:
    """The job a worker has open."""

    key: str
    job: Job
    store: RunStore
    relay: Relay

    def close(self) -> None:
        """End its engine."""
        self.job.close()
        if isinstance(self.store, RemoteStore):
            self.store.discard()


_lock = threading.RLock()
_open: Open | None = None
_timer: threading.Timer | None = None


def perform(payload: Mapping[str, Any], tell: Tell, linger: float = 0.0) -> dict[str, Any]:
    """Do one task.

    Args:
        payload: "op" (score or collect), "place", "run", and for score "context" and "corpus".
        tell: told of progress.
        linger: seconds after which the engine is ended if nothing more comes; 0 for never.

    Raises:
        NybbleError: the model, the engine or the place cannot be used.
    """
    global _timer
    with _lock:
        if _timer is not None:
            _timer.cancel()
            _timer = None
        try:
            found = _ready(payload, tell)
            if payload["op"] == "collect":
                return _collect(payload, found)
            return _score(payload, found)
        except BaseException:
            close()  # a broken engine must not serve the next task
            raise
        finally:
            if linger and _open is not None:
                _timer = threading.Timer(linger, close)
                _timer.daemon = True
                _timer.start()


def close() -> None:
    """End the open job, if there is one."""
    global _open
    with _lock:
        if _open is not None:
            _open.close()
            _open = None


def _run(payload: Mapping[str, Any]) -> Run:
    given = dict(payload["run"])
    for name in ("settings", "contexts", "corpora"):
        given[name] = tuple(given[name])
    return Run(**given)


def _ready(payload: Mapping[str, Any], tell: Tell) -> Open:
    global _open
    key = json.dumps([payload["place"], payload["run"]], sort_keys=True)
    if _open is None or _open.key != key:
        close()
        run, relay = _run(payload), Relay()
        relay.tell = tell
        store = open_place(payload["place"]).store(run.name)
        _open = Open(key, Job(run.request(), relay), store, relay)
    elif isinstance(_open.store, RemoteStore):
        _open.store.look()  # others have scored groups of this run since
    _open.relay.tell, _open.relay.notes = tell, []
    return _open


def _score(payload: Mapping[str, Any], found: Open) -> dict[str, Any]:
    run = _run(payload)
    group = Group(run, payload["context"], payload["corpus"])
    begun = time.monotonic()
    job, portion = found.job, Portion(group.context, group.corpus)
    empty = portion not in job.portions
    scored = 0 if empty else job.score(found.store, portion)
    failed = {
        str(series.lane.setting): error
        for (series, context), error in job.outcome.failed.items()
        if context == group.context
    }
    record = {
        "context": group.context, "corpus": group.corpus, "settings": list(run.settings),
        "scored": scored, "empty": empty, "failed": failed, "notes": found.relay.notes,
        "seconds": round(time.monotonic() - begun, 3), "node": socket.gethostname(),
        "hardware": hardware(), "threads": run.threads,
    }  # fmt: skip
    write_json(open_place(payload["place"]), group.marker, record)
    return record


def _collect(payload: Mapping[str, Any], found: Open) -> dict[str, Any]:
    """Merge a run: the same cells give the same bytes, whoever scored them and when."""
    run, place = _run(payload), open_place(payload["place"])
    records = _records(place, run)
    failed: dict[tuple[str, int], str] = {}
    for record in records:
        for setting, error in sorted(record["failed"].items()):
            failed.setdefault((setting, int(record["context"])), error)
    for setting, context, error in payload.get("skipped", []):
        failed.setdefault((setting, int(context)), error)
    found.job.know(found.store, failed)
    lost = found.job.incomplete(found.store)
    measurement = found.job.collect(found.store, failed)
    damaged = [_set_aside(place, run, found.store, name) for name in found.store.damaged]
    again = {name.rpartition("/")[2].split("-")[0] for name in damaged}  # c1024 and so on
    # Scored by an engine's build since replaced, or gone: not there for this request.
    damaged += [_forget(place, run, p) for p in lost if f"c{p.context}" not in again]
    merged = dataclasses.replace(
        measurement, created="", timing={}, hardware=_hardware(measurement, records)
    )
    place.write(f"runs/{run.name}/summary.json", to_json(merged).encode())
    if not damaged:  # else the next run mends the cells and merges again
        write_json(place, f"runs/{run.name}/{MERGED}", {"key": payload["key"]})
    return {"run": run.name, "damaged": damaged}


def _set_aside(place: Place, run: Run, store: RunStore, name: str) -> str:
    """Rename a damaged cell and forget that its groups were done; the next run mends them."""
    store.set_aside(name)
    for context in run.contexts:
        if name.startswith(f"c{context}-"):
            for corpus in run.corpora:
                place.remove(Group(run, context, corpus).marker)
    return f"runs/{run.name}/rows/{name}.parquet"


def _forget(place: Place, run: Run, portion: Portion) -> str:
    """Let a group that counts as finished and is not be run again."""
    place.remove(Group(run, portion.context, portion.category).marker)
    return f"runs/{run.name}: {portion.category} at {portion.context:,}"


def _records(place: Place, run: Run) -> list[dict[str, Any]]:
    """What the groups of a run left, in a fixed order."""
    records = (read_json(place, group.marker) for group in groups_of(run))
    return [record for record in records if record is not None]


def _hardware(measurement: Measurement, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the nodes that scored, not of the one that merges; several are named side by side."""
    kinds = sorted({json.dumps(r["hardware"], sort_keys=True) for r in records})
    nodes = [json.loads(k) for k in kinds]
    if not nodes:
        return dict(measurement.hardware)
    found = dict(measurement.hardware)
    for name in nodes[0]:
        values = list(dict.fromkeys(n.get(name) for n in nodes))
        found[name] = values[0] if len(values) == 1 else "; ".join(map(str, values))
    return found
