"""What an engine takes, refuses and fakes, and how it is started: one file an engine.

An engine's file is data first: the values of its KV flag with the versions that have them, the
hardware they need and when quantized K and V are read, and the traps, each with source and date.
Behind the data stand three functions: refuse, warn, launch. `registry.py` lists the files.

Versions are the engine's own; builds of llama.cpp (`b11549`) compare by number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from packaging.version import InvalidVersion, Version

from nybble.errors import NybbleError
from nybble.formats.setting import KVSetting
from nybble.models.geometry import Geometry

# "always": prompts are scored through the quantized cache. "decode": a prefill attends to raw K
# and V, only later tokens read what is stored. "chunks": raw inside one prefill chunk.
Read = Literal["always", "chunks", "decode"]
Tells = Literal["api", "log", "echo", "no"]
TrapKind = Literal["fallback", "no effect", "slow path", "extra memory", "late refusal", "garbage"]

KEY = "NYBBLE_API_KEY"  # environment variable that carries the key into every launch


@dataclass(frozen=True)
class Hardware:
    """What a setting runs on.

    Attributes:
        vendor: "nvidia", "amd", "intel", "apple" or "cpu"; None where no card was named.
        sm: NVIDIA compute capability times ten, 89 for an RTX 4090; None where not known.
        name: for people.
    """

    vendor: str | None = None
    sm: int | None = None
    name: str = ""


@dataclass(frozen=True)
class KVChoice:
    """One value of an engine's KV flag.

    Attributes:
        name: as the engine spells it, for example "int4_per_token_head".
        kv: what it stores, in nybble's words: a KV setting ("nvfp4/nvfp4"), or a KV type ("q4_0")
            where the engine has a flag for each side. None for what nybble has no format of.
        read: when quantized K and V are read.
        vendors: of cards it runs on.
        sm: NVIDIA compute capabilities (families, times ten) it needs; empty for any.
        since: first version with it; None where it is older than what was read.
        until: first version without it again.
        limits: what else it demands, in words.
        source: file or page it is read from.
    """

    name: str
    kv: str | None
    source: str
    read: Read = "always"
    vendors: tuple[str, ...] = ("nvidia", "amd", "intel", "apple", "cpu")
    sm: tuple[int, ...] = ()
    since: str | None = None
    until: str | None = None
    limits: str = ""


@dataclass(frozen=True)
class Trap:
    """Something an engine does without saying so.

    Attributes:
        kind: what sort.
        what: one sentence.
        source: issue, file or page.
        since: first version that does it; None for always.
        until: first version that no longer does.
    """

    kind: TrapKind
    what: str
    source: str
    since: str | None = None
    until: str | None = None


@dataclass(frozen=True)
class ConfigFile:
    """A file the engine reads, with its whole text."""

    name: str
    text: str


@dataclass(frozen=True)
class Deployment:
    """One model to serve in one KV setting.

    Attributes:
        model: path or hub id, as the engine is given it.
        geometry: of the model.
        weights: kind of its files: "gguf", "safetensors", "exl2", "exl3" or "mlx".
        setting: K and V types, rotation, and what is around them.
        context: tokens of one sequence, prompt and answer.
        sequences: held at once, each as long as `context`.
        cards: the model is split over.
        hardware: each of them.
        host: address to listen on.
        port: to listen on.
        keyed: whether requests must carry the key in the environment variable `KEY`.
        quantization: of the weights, as their quantization_config names it ("compressed-tensors",
            "modelopt", ...); None for plain ones.
        name: the model is served under; None for the engine's own.
    """

    model: str
    geometry: Geometry
    weights: str
    setting: KVSetting
    context: int
    sequences: int = 1
    cards: int = 1
    hardware: Hardware = Hardware()
    host: str = "127.0.0.1"
    port: int = 8080
    keyed: bool = False
    quantization: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Launch:
    """How to start an engine.

    Attributes:
        command: argument vector; a file of `files` is named by its bare name.
        env: environment variables. `$NAME` as a value, or as one argument, stands for an
            environment variable, so that no secret is ever in here.
        files: written beside the command.
        image: container image with its tag; empty where the project publishes none.
        store: folder inside the image where the engine keeps models it finds by name.
        image_command: argument vector inside the image where it differs from `command`.
        health: path that answers 200 once requests are served.
        api: path of the OpenAI-compatible API; empty where there is none.
        after: commands to run once it is healthy, with the same environment and files.
        at_home: whether the engine runs in a folder of its own, where its script is; `nybble
            serve` is told which.
        notes: what a user should know of this very launch.
    """

    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    files: tuple[ConfigFile, ...] = ()
    image: str = ""
    store: str = "/root/.cache/huggingface"
    image_command: tuple[str, ...] | None = None
    health: str = "/health"
    api: str = "/v1"
    after: tuple[tuple[str, ...], ...] = ()
    at_home: bool = False
    notes: tuple[str, ...] = ()


class Engine(ABC):
    """One engine's capabilities.

    Attributes:
        name: as in `planning.memory.registry.ENGINES`.
        version: newest version that was read for this file.
        read_on: date of that, ISO.
        packages: on PyPI, by which it is installed and watched, the main one first.
        repository: on GitHub, owner/name; empty where its releases are not there.
        flags: how K and V types are given, for people.
        sides: whether K and V take different types.
        choices: values of the flag, best quality first.
        traps: see `Trap`.
        sliding: what becomes of sliding-window layers, in words.
        limits: head sizes, block sizes, families: what is refused whatever the type, in words.
        tells: who tells the type in effect: "api", "log" (and no API), "echo" (only what was
            asked for is repeated) or "no".
        readback: how a running server tells the KV type in effect, in words.
        sources: what was read.
    """

    name: str
    version: str
    read_on: str
    packages: tuple[str, ...] = ()
    repository: str = ""
    flags: str
    sides: bool = False
    choices: tuple[KVChoice, ...]
    traps: tuple[Trap, ...] = ()
    sliding: str = ""
    limits: str = ""
    tells: Tells = "no"
    readback: str = ""
    sources: tuple[str, ...] = ()

    def choice(self, setting: KVSetting) -> tuple[KVChoice, KVChoice]:
        """The values for K and V (one value twice where the engine has one flag).

        Raises:
            NybbleError: the engine has no value for this setting.
        """
        by_kv = {c.kv: c for c in self.choices if c.kv}
        if self.sides:
            k, v = by_kv.get(setting.k), by_kv.get(setting.v)
        else:
            k = v = by_kv.get(str(setting))
        if k is None or v is None:
            names = [c.kv for c in self.choices if c.kv]
            raise NybbleError(
                f"{self.name} has no such KV setting", seen=str(setting),
                allowed=names, hint=f"nybble engines {self.name}",
            )  # fmt: skip
        return k, v

    def refuse(self, asked: Deployment) -> None:
        """Refuse what the engine would refuse or fake; planning's memory model has passed.

        Raises:
            NybbleError: and why.
        """
        for chosen in dict.fromkeys(self.choice(asked.setting)):
            check_hardware(self.name, chosen, asked.hardware)

    def warnings(self, asked: Deployment) -> tuple[str, ...]:
        """What happens to this deployment without the engine saying so; one sentence each."""
        return ()

    @abstractmethod
    def launch(self, asked: Deployment) -> Launch:
        """How to start it; `refuse` has passed.

        Raises:
            NybbleError: this engine cannot be started from a command line, or not so.
        """


def check_hardware(engine: str, chosen: KVChoice, hardware: Hardware) -> None:
    """Refuse a value on hardware it does not run on; unknown hardware passes.

    Raises:
        NybbleError: see above.
    """
    vendor, sm = hardware.vendor, hardware.sm
    if vendor is not None and vendor != "what-if" and vendor not in chosen.vendors:
        raise NybbleError(
            f"{engine} does not run {chosen.name} on this hardware",
            seen=hardware.name or vendor, allowed=chosen.vendors,
            hint=f"nybble engines {engine}",
        )  # fmt: skip
    if vendor == "nvidia" and sm is not None and chosen.sm:
        # Families: SM120 stands for SM121 too, SM80 for SM86 and SM89 where they are listed.
        if sm not in chosen.sm and sm // 10 * 10 not in chosen.sm:
            raise NybbleError(
                f"{engine} does not run {chosen.name} on this card",
                seen=f"{hardware.name or 'a card'} (SM{sm})",
                allowed=[f"SM{x}" for x in chosen.sm], hint=f"nybble engines {engine}",
            )  # fmt: skip


def release(text: str) -> Version:
    """A version of any engine as one that compares: `b11549` as 11549.

    Raises:
        NybbleError: not a version.
    """
    plain = text.strip().lstrip("vb")
    try:
        return Version(plain)
    except InvalidVersion:
        raise NybbleError("not a version", seen=text, allowed="0.33.0, v1.6.5, b11549") from None


def holds(version: str, since: str | None, until: str | None) -> bool:
    """Whether something that began with `since` and ended with `until` holds in `version`."""
    at = release(version)
    return (since is None or at >= release(since)) and (until is None or at < release(until))
