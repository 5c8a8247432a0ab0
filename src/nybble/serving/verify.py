"""`verify`: hold a running server against what was asked of it.

Four sources, none trusted alone: what was asked (the record of `nybble serve`, the listener's
command line, the user), what the server or its log reports, what its cache holds when it is
saved, and how the model behaves.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from nybble.engines.known.base import KEY, Engine
from nybble.engines.known.registry import engine as known_engine
from nybble.engines.llamacpp.slotfile import SlotCache, read_slot
from nybble.engines.readback.base import Http, Reading
from nybble.engines.readback.registry import reader, recognised
from nybble.engines.server.base import PLAIN, SAME
from nybble.errors import EngineError, NybbleError
from nybble.formats.setting import KVSetting, parse
from nybble.planning.plan import plan
from nybble.planning.request import PlanRequest
from nybble.results.verification import Check, State, Verification, judge
from nybble.serving import probe as probing
from nybble.serving import runs
from nybble.serving.listener import Listener, asked_types, listener, log_text

_SLOT = "nybble-verify.slot"
_LOG_ROUNDING = 0.01 * 2**20  # bytes: K and V are logged in MiB with two decimals
_SAVED = 64  # tokens put into a slot before it is saved
# Nat a token away from a 16-bit cache; q4_0/q4_0 on Gemma 3 270M, which is called broken, is 0.3.
_DRIFT = 1.0


@dataclass(frozen=True)
class VerifyRequest:
    """Which server, and what is known of it.

    Attributes:
        url: of the server, with or without /v1.
        setting: that was asked for; None for what the record or the command line says.
        engine: name; None to recognise it.
        model: the GGUF or folder it runs; None for the record's.
        log: file of its output; None for the record's or the listener's.
        slots: folder it saves slots to; None for the record's.
        reference: URL of a server of the same model with a 16-bit cache.
        probe: whether to look at its behaviour.
        key: for requests; None for the environment's.
    """

    url: str
    setting: KVSetting | None = None
    engine: str | None = None
    model: Path | None = None
    log: Path | None = None
    slots: Path | None = None
    reference: str | None = None
    probe: bool = True
    key: str | None = None


@dataclass(frozen=True)
class _Asked:
    """What was asked of the server, by whom."""

    k: str | None
    v: str | None
    rotation: bool | None
    setting: KVSetting | None
    bytes_per_token: int | None
    context: int | None
    sequences: int | None


def verify(request: VerifyRequest, tell: Callable[[str], None] = lambda _: None) -> Verification:
    """Read a server back and judge it.

    Args:
        request: which server.
        tell: called with what is going on.

    Raises:
        NybbleError: not an address, nobody answers there, or an unknown kind of server.
    """
    base, port = _address(request.url)
    key = request.key or os.environ.get(KEY) or None
    http = Http(base, key)
    try:
        tell("asking the server")
        if request.engine:
            chosen = reader(request.engine.strip().lower())
        else:
            found = recognised(http)
            if found is None:
                raise _nobody(base, http)
            chosen = found
        run, here, notes = _of_this_machine(base, port)
        log = _log(request, run, here)
        reading = chosen.read(http, log)
        engine = known_engine(reading.engine)
        asked = _asked(request, run, here, engine)
        slots = request.slots or (Path(run.slots) if run and run.slots else None)
        saved: tuple[SlotCache, ...] = ()
        if reading.engine == "llama.cpp" and slots is not None:
            tell("saving a slot")
            saved, said = _saved(http, slots)
            notes += said
    finally:
        http.close()
    probe, said = _probe(request, base, reading, asked, run, tell)
    notes += [*said, *reading.notes]
    if log is None and reading.k is None:
        notes.append(f"no log: {engine.readback}")
    checks = _checks(engine, asked, reading, saved, probe)
    outcome, why = judge(checks)
    return Verification(
        base, reading.engine, reading.version or "not told", reading.model or "not told",
        checks, outcome, why, reading.sources, tuple(dict.fromkeys(notes)),
    )  # fmt: skip


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url if "//" in url else f"http://{url}")
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        port = 0
    if parts.scheme not in ("http", "https") or not parts.hostname or not port:
        raise NybbleError("not an address of a server", seen=url, allowed="http://HOST:PORT",
                          hint="nybble verify http://127.0.0.1:8080")  # fmt: skip
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port}", port


def _nobody(base: str, http: Http) -> NybbleError:
    if http.refused:
        return NybbleError("the server demands a key", seen=f"{base}: HTTP {max(http.refused)}",
                           allowed=f"its key in {KEY}", hint=f"export {KEY}=...")  # fmt: skip
    return NybbleError("no server that is known answers there", seen=base,
                       allowed="llama.cpp, vLLM, SGLang, Ollama, TabbyAPI, LMDeploy, TensorRT-LLM, "
                       "mlx-lm", hint="check the port, or --engine NAME")  # fmt: skip


def _of_this_machine(base: str, port: int) -> tuple[runs.Run | None, Listener | None, list[str]]:
    """The record of `nybble serve`, the listener, and a note where they do not belong together."""
    host = urlsplit(base).hostname or ""
    if host not in ("127.0.0.1", "localhost", "::1"):
        return None, None, []
    run, here = runs.recall(port), listener(port)
    if run is not None and here is not None and run.pid not in (here.pid, *here.parents):
        told = " ".join(here.command)[:160]
        return run, here, [f"process {here.pid} listens on port {port}, which nybble serve "
                           f"(process {run.pid}) did not start: {told}"]  # fmt: skip
    return run, here, []


def _log(request: VerifyRequest, run: runs.Run | None, here: Listener | None) -> str | None:
    if request.log is not None:
        found = log_text(request.log)
        if found is None:
            raise NybbleError("cannot read the log", seen=request.log, hint="--log FILE, the "
                              "server's output")  # fmt: skip
        return found
    stranger = run and here and run.pid not in (here.pid, *here.parents)
    if run is not None and not stranger:
        return log_text(Path(run.log))
    return log_text(here.output) if here is not None and here.output is not None else None


def _asked(
    request: VerifyRequest, run: runs.Run | None, here: Listener | None, engine: Engine
) -> _Asked:
    setting = request.setting or (parse(run.kv) if run else None)
    size = run.bytes_per_token if run and (request.setting in (None, parse(run.kv))) else None
    if size is None and request.model is not None and setting is not None:
        size = _planned(request.model, engine.name, setting)
    context = run.context if run else None
    sequences = run.sequences if run else None
    if setting is not None:
        try:
            k, v = (choice.name for choice in engine.choice(setting))
        except NybbleError:
            k, v = setting.k, setting.v
        return _Asked(k, v, setting.rotation, setting, size, context, sequences)
    k_asked, v_asked = asked_types(here.command) if here else (None, None)
    if k_asked is None and engine.sides and here is not None and v_asked is not None:
        k_asked = "f16"
    return _Asked(k_asked, v_asked, None, None, None, None, None)


def _planned(model: Path, engine: str, setting: KVSetting) -> int | None:
    """Bytes a token of the plan; None where the engine refuses the setting, as it may not run."""
    made = plan(PlanRequest(str(model), engines=(engine,), settings=(setting,)))
    return next((fit.bytes_per_token for fit in made.fits if not fit.refused), None)


def _saved(http: Http, slots: Path) -> tuple[tuple[SlotCache, ...], list[str]]:
    """The caches of a slot that was filled and saved; a note where that is not possible."""
    filled = http.json("/completion", {"prompt": list(range(5, 5 + _SAVED)), "n_predict": 1,
                                       "id_slot": 0, "cache_prompt": True})  # fmt: skip
    done = http.json("/slots/0?action=save", {"filename": _SLOT})
    if filled is None or not isinstance(done, dict) or "n_written" not in done:
        return (), [f"the server saves no slots to {slots} (--slots FOLDER of nybble serve)"]
    path = slots / _SLOT
    try:
        try:
            return read_slot(path, caches=2), []
        except EngineError:
            return read_slot(path, caches=1), []
    except EngineError as error:
        return (), [f"the saved slot was not read: {error.what}" + (f" ({error.seen})" if error.seen
                    else "")]  # fmt: skip
    finally:
        path.unlink(missing_ok=True)


def _probe(
    request: VerifyRequest,
    base: str,
    reading: Reading,
    asked: _Asked,
    run: runs.Run | None,
    tell: Callable[[str], None],
) -> tuple[probing.Probe | None, list[str]]:
    if not request.probe:
        return None, []
    if not probing.can_probe(reading.engine):
        return None, [f"{reading.engine} tells no log-probabilities of given tokens: how it "
                      "behaves was not looked at"]  # fmt: skip
    tell("decoding a text")
    path = request.model or (Path(run.model) if run else None)
    path = path if path is not None and path.is_file() else None
    settings = [asked.setting] if asked.setting else []
    try:
        found = probing.probe(reading.engine, base, model=path, settings=settings,
                              reference=request.reference)  # fmt: skip
    except EngineError as error:
        return None, [f"how the server behaves was not found out: {error.what}"
                      + (f" ({error.seen})" if error.seen else "")]  # fmt: skip
    return found, []


def _checks(
    engine: Engine,
    asked: _Asked,
    reading: Reading,
    saved: Sequence[SlotCache],
    probe: probing.Probe | None,
) -> tuple[Check, ...]:
    seen_k, seen_v = _observed(saved, probe)
    made = [
        _type("K type", asked.k, reading.k, seen_k, reading.echo),
        _type("V type", asked.v, reading.v, seen_v, reading.echo),
    ]
    turned = saved[0].rotation if saved else None
    if reading.rotation is not None or turned is not None:
        made.append(_rotation(asked, reading.rotation, turned))
    made.append(_bytes(asked, reading, saved))
    for name, want, got in (("context", asked.context, reading.context),
                            ("sequences", asked.sequences, reading.sequences)):  # fmt: skip
        if want is not None or got is not None:
            # Engines round a context up to their blocks, never down.
            state: State = "untold" if got is None or want is None else (
                "ok" if got >= want else "differs")  # fmt: skip
            made.append(Check(name, _n(want), _n(got), "", state))
    if probe is not None:
        made.append(_behaviour(probe))
    return tuple(made)


def _observed(
    saved: Sequence[SlotCache], probe: probing.Probe | None
) -> tuple[str | None, str | None]:
    """K and V types by the saved cache, else by the server's log-probabilities."""
    types = {pair for cache in saved for pair in cache.types}
    if len(types) == 1:
        return next(iter(types))
    if probe is not None and probe.match is not None and probe.match.setting is not None:
        setting = parse(probe.match.setting)
        return setting.k, setting.v
    return None, None


def _type(
    name: str, asked: str | None, reported: str | None, observed: str | None, echo: bool
) -> Check:
    known = observed or (None if echo else reported)
    if known is None:
        state: State = "echo" if echo and reported else "untold"
    elif asked is None or _same(asked, known):
        state = "ok"
    else:
        state = "differs"
    if observed and reported and not _same(observed, reported) and state == "ok":
        state = "differs"
    return Check(name, asked or "", reported or "", observed or "", state)


_PLAIN = PLAIN | {"fp16"}  # TabbyAPI's


def _same(a: str, b: str) -> bool:
    a, b = (SAME.get(x.lower(), x.lower()) for x in (a, b))
    return a == b or (a in _PLAIN and b in _PLAIN)


def _rotation(
    asked: _Asked, reported: tuple[int, int] | None, observed: tuple[int, int] | None
) -> Check:
    found = observed if observed is not None else reported
    quantized = asked.setting is not None and asked.setting.quantized
    state: State = "ok"
    if asked.rotation is False and found and any(found):
        state = "differs"
    want = "" if asked.rotation is None or not quantized else "on" if asked.rotation else "off"
    show = [f"{x[0]}/{x[1]}" if x else "" for x in (reported, observed)]
    return Check("rotation", want, show[0], show[1], state)


def _bytes(asked: _Asked, reading: Reading, saved: Sequence[SlotCache]) -> Check:
    """Bytes that one more token adds once windows are full: those of the global layers."""
    observed = saved[0].bytes_per_token if saved else None
    want, told = asked.bytes_per_token, reading.bytes_per_token
    state: State = "untold"
    if want is not None and observed is not None:
        state = "ok" if observed == want else "differs"
    elif want is not None and told is not None:
        slack = _LOG_ROUNDING / reading.tokens if reading.tokens else 0.0
        state = "ok" if abs(told - want) <= max(slack, 0.005 * want) else "differs"
    return Check("bytes a token", _n(want), "" if told is None else f"{told:,.0f}", _n(observed),
                 state)  # fmt: skip


def _behaviour(probe: probing.Probe) -> Check:
    told = f"{probe.nll:.2f} nat a token of plain English ({probe.read})"
    if probe.broken:
        told = (f"{probe.nll:.1f} nat a token of plain English, chance is "
                f"{math.log(probe.vocabulary or 32_000):.1f}: the output is garbage")  # fmt: skip
    state: State = "broken" if probe.broken else "ok"
    if probe.drift is not None:
        told += f"; {probe.drift:.2g} nat a token from the reference"
        state = "broken" if probe.drift > _DRIFT else state
    if probe.match is not None:
        near = ", ".join(f"{name} {gap:.2g}" for name, gap in probe.match.distances[:3])
        told += f"; nearest settings, nat apart: {near}"
    return Check("behaviour", "", "", told, state)


def _n(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
