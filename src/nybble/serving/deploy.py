"""From a plan to a deployment: which KV setting, how long a context, how an engine is given both.

`nybble config` writes the deployment down, `nybble serve` starts it, `nybble verify` holds a
running server against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nybble.engines.known.base import Deployment, Engine, Hardware, Launch
from nybble.engines.known.registry import engine as known_engine
from nybble.errors import NybbleError
from nybble.formats.setting import KVSetting, parse
from nybble.loopback import loopback
from nybble.models.found import find
from nybble.planning.memory.registry import known, memory_model
from nybble.planning.plan import plan
from nybble.planning.request import CardChoice, PlanRequest
from nybble.planning.seats import Seats, cards_of
from nybble.results.plans import Fit, Plan
from nybble.serving.checkpoints import checkpoint, file_for

MAX_KLD = 0.02  # nat; what --kv auto allows unless told otherwise: "safe" of the verdicts
# Notes of a plan that every launch settles.
_SETTLED = ("llama-server without -np",)
USUAL_CONTEXT = 32_768  # tokens; without --context a cache is not made larger than this


@dataclass(frozen=True)
class DeployRequest:
    """What to deploy, and where.

    Attributes:
        model: what `models.found.find` takes.
        engine: name; None for llama.cpp with a GGUF and vLLM with safetensors.
        file: of a model of the catalogue, which of its published files.
        setting: K and V types; None for the smallest that was measured within `max_kld`.
        max_kld: mean KLD in nat that an unnamed setting may cost; None for 0.02, and for 16 bits
            where nothing was measured.
        context: tokens of one sequence; None for what fits, up to 32,768.
        users: sequences held at once.
        cards: that it runs on.
        results: folders of measurements; empty for ./nybble-results where it is there.
        host: address to listen on.
        port: to listen on.
        keyed: whether requests must carry a key.
        name: the model is served under; None for the file's or the hub's.

    Raises:
        NybbleError: no port, no address, or an address others can reach without a key.
    """

    model: str
    engine: str | None = None
    file: str | None = None
    setting: KVSetting | None = None
    max_kld: float | None = None
    context: int | None = None
    users: int = 1
    cards: CardChoice = CardChoice()
    results: tuple[Path, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8080
    keyed: bool = False
    name: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise NybbleError("not a port", seen=self.port, allowed="1 to 65535",
                              hint="--port 8080")  # fmt: skip
        if not self.keyed and not loopback(self.host):
            raise NybbleError(
                "a server that others can reach needs an API key", seen=f"--host {self.host}",
                allowed="127.0.0.1 without a key; any address with one",
                hint="export NYBBLE_API_KEY=... and add --api-key, or leave out --host",
            )  # fmt: skip


@dataclass(frozen=True)
class Deployed:
    """A deployment that planning and the engine's own limits have passed.

    Attributes:
        deployment: for `Engine.launch`.
        engine: its capabilities.
        fit: the row of the plan.
        quality: what its KV setting was measured to cost, in words; empty where nothing was.
        notes: what a user should know, the engine's silent doings among them.
    """

    deployment: Deployment
    engine: Engine
    fit: Fit
    quality: str
    notes: tuple[str, ...]

    def launch(self) -> Launch:
        """How to start it."""
        return self.engine.launch(self.deployment)


def deploy(request: DeployRequest) -> Deployed:
    """Plan a deployment, and refuse what the engine would refuse or fake.

    Raises:
        NybbleError: the model, engine or cards are not known; the KV setting does not run there;
            it does not fit; or a quality was asked for that was never measured.
    """
    found = None if request.engine else find(request.model, request.file)
    usual = "llama.cpp" if found is None or found.weights == "gguf" else "vllm"
    name = (request.engine or usual).strip().lower()
    engine = known_engine(name)
    file = file_for(request.model, request.file, name)
    if found is None or file != request.file:
        request = replace(request, file=file)
        found = find(request.model, file)
    seats = cards_of(request.cards)
    if seats is not None and seats.card.vendor not in (vendors := known(name).vendors):
        # vLLM has a build for CPUs, which planning does not know.
        if not (name == "vllm" and seats.card.vendor == "cpu"):
            raise NybbleError(f"{name} does not run on {seats.card.name}", seen=seats.card.vendor,
                              allowed=vendors, hint="nybble engines")  # fmt: skip
    if request.setting is not None:
        memory_model(name).check(found.geometry, request.setting)
    given = checkpoint(request.model, request.file, found, name)
    made = plan(_plan_request(request, name, seats))
    fit, notes = _select(made, request, name)
    context = _context(fit, made, request)
    deployment = Deployment(
        model=given.model,
        geometry=found.geometry,
        weights=given.weights,
        setting=request.setting or parse(fit.setting),
        context=context,
        sequences=request.users,
        cards=seats.budget.cards if seats else 1,
        hardware=hardware_of(seats),
        host=request.host.strip("[]"),
        port=request.port,
        keyed=request.keyed,
        quantization=given.quantization,
        name=request.name or given.name,
    )
    engine.refuse(deployment)
    notes += [n for n in (*given.notes, *fit.notes) if not n.startswith(_SETTLED)]
    notes += engine.warnings(deployment)
    return Deployed(deployment, engine, fit, _quality(fit), tuple(dict.fromkeys(notes)))


def _plan_request(request: DeployRequest, engine: str, seats: Seats | None) -> PlanRequest:
    cards = request.cards
    if seats is not None and seats.card.vendor not in known(engine).vendors:
        cards = CardChoice()
    return PlanRequest(
        request.model, file=request.file, cards=cards, engines=(engine,),
        settings=(request.setting,) if request.setting else (),
        users=request.users, results=request.results,
    )  # fmt: skip


def _select(made: Plan, request: DeployRequest, engine: str) -> tuple[Fit, list[str]]:
    """The row to deploy, and what must be said about the choice."""
    rows = [fit for fit in made.fits if not fit.refused]
    if request.setting is not None:
        return _asked(rows, made), []
    bound = MAX_KLD if request.max_kld is None else request.max_kld
    measured = [fit for fit in rows if fit.quality is not None]
    if request.max_kld is not None and not measured:
        raise NybbleError(
            "no stored measurement says what a KV setting costs on this model",
            seen=f"{made.model}, --max-kld {bound:g}",
            allowed="--results FOLDER with runs of nybble measure on this model",
            hint=f"nybble measure {request.model}",
        )
    good = [fit for fit in rows if fit.bits >= 16 or within(fit, bound)]
    holding = [fit for fit in good if _holds(fit, request.context)]
    if not holding:
        largest = max((fit.largest_context or 0 for fit in good), default=0)
        raise NybbleError(
            f"no KV setting that was measured within a mean KLD of {bound:g} holds this context",
            seen=f"{request.context or 1:,} tokens", allowed=f"up to {largest:,}",
            hint=f"nybble plan {request.model} --engine {engine}, then --kv SETTING",
        )  # fmt: skip
    best = min(holding, key=lambda fit: (fit.bits, -(fit.largest_context or 0)))
    if best.bits < 16:
        return best, []
    why = (f"no smaller setting was measured within a mean KLD of {bound:g}" if measured else
           "no measurement of this model says what a smaller one costs")  # fmt: skip
    return best, [f"16-bit cache: {why} (nybble measure {request.model}, or --kv q8_0/q8_0)"]


def within(fit: Fit, bound: float) -> bool:
    """Whether a setting was measured to cost at most `bound` nat, by its interval's upper end."""
    if fit.quality is None:
        return False
    kld = fit.quality.mean_kld
    return (kld.value if kld.high is None else kld.high) <= bound


def _asked(rows: Sequence[Fit], made: Plan) -> Fit:
    if rows:
        return rows[0]
    refused = made.fits[0]
    raise NybbleError(f"{refused.engine} does not run this", seen=refused.setting,
                      allowed=refused.refused, hint=f"nybble engines {refused.engine}")  # fmt: skip


def _holds(fit: Fit, context: int | None) -> bool:
    return fit.largest_context is None or fit.largest_context >= (context or 1)


def _context(fit: Fit, made: Plan, request: DeployRequest) -> int:
    if request.context is None:
        largest = made.context_length if fit.largest_context is None else fit.largest_context
        if largest:
            return min(largest, USUAL_CONTEXT)
        raise NybbleError("the model does not fit on these cards", seen=f"{fit.setting} in "
                          f"{fit.engine}", hint=f"nybble plan {request.model} --explain with the "
                          "same card")  # fmt: skip
    if request.context > made.context_length:
        raise NybbleError("the model was not made for such a context",
                          seen=f"{request.context:,} tokens", allowed=f"up to "
                          f"{made.context_length:,}",
                          hint=f"--context {made.context_length}")  # fmt: skip
    if not _holds(fit, request.context):
        raise NybbleError(
            "this context does not fit on these cards",
            seen=f"{request.users} x {request.context:,} tokens in {fit.setting}",
            allowed=f"up to {fit.largest_context or 0:,}",
            hint=f"--context {fit.largest_context}" if fit.largest_context else
            f"nybble plan {request.model}",
        )  # fmt: skip
    return request.context


def hardware_of(seats: Seats | None) -> Hardware:
    """The cards of a plan as an engine's capabilities know them; nothing of a what-if card."""
    if seats is None:
        return Hardware()
    card = seats.card
    vendor = None if card.vendor == "what-if" else card.vendor
    return Hardware(vendor, card.sm, card.name)


def _quality(fit: Fit) -> str:
    if fit.quality is None:
        return ""
    q = fit.quality
    where = "" if q.same_model else f" on {q.model}"
    simulated = ", simulated" if q.simulated else ""
    return f"mean KLD {q.mean_kld.value:.2g} at {q.context:,} tokens{where}{simulated}: {q.verdict}"


def at(deployed: Deployed, **changes: object) -> Launch:
    """The launch of the same deployment elsewhere: another address, another path of the model.

    Raises:
        NybbleError: the engine refuses what was changed, for example a key.
    """
    changed = replace(deployed.deployment, **changes)  # type: ignore[arg-type]
    deployed.engine.refuse(changed)
    return deployed.engine.launch(changed)
