"""nybble's own runtime as an engine: what it takes, refuses, says, and how it is started."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nybble.engines.known.base import KEY, Deployment, Hardware
from nybble.engines.known.nybble import stores
from nybble.engines.known.registry import engine
from nybble.environment import VERSION
from nybble.errors import NybbleError
from nybble.formats.registry import KV_TYPES
from nybble.formats.setting import parse
from nybble.models.found import find
from nybble.planning.memory.registry import memory_model
from nybble.planning.request import CardChoice
from nybble.serving.deploy import DeployRequest, deploy

GEMMA = find("gemma-4-31b-qat").geometry
NYBBLE = engine("nybble")


def asked(**more: Any) -> Deployment:
    fields: dict[str, Any] = {
        "model": "/models/m", "geometry": GEMMA, "weights": "safetensors",
        "setting": parse("q4_0+latent"), "context": 262_144,
        "hardware": Hardware("nvidia", 89, "RTX 4090"),
    }  # fmt: skip
    return Deployment(**fields | more)


def test_planning_takes_the_same() -> None:
    model = memory_model("nybble")
    assert NYBBLE.version == model.version == VERSION
    taken = [c.kv for c in NYBBLE.choices]
    assert {"f16", "q8_0", "q5_1", "q4_0", "iq4_nl", "nyb4", "int4_per_token_head"} <= set(taken)
    for name, kind in KV_TYPES.items():
        if kind.sides == "KV":
            assert (name in taken) == stores(kind)
            if stores(kind):
                model.check(GEMMA, parse(name))
                assert NYBBLE.choice(parse(name))[0].name == name
            else:
                for refuse in (NYBBLE.choice, lambda s: model.check(GEMMA, s)):
                    with pytest.raises(NybbleError, match="every token by itself"):
                        refuse(parse(name))
    for text in model.listed(GEMMA):
        NYBBLE.refuse(asked(setting=parse(text)))


def test_types_of_one_side_and_what_is_around() -> None:
    k, v = NYBBLE.choice(parse("turboquant_k4/q4_0+first4+recent128+skip0"))
    assert (k.name, v.name, k.read) == ("turboquant_k4", "q4_0", "always")
    assert "nybble calibrate" in NYBBLE.choice(parse("nyb4"))[0].limits
    with pytest.raises(NybbleError, match="which hqq_4 does not"):
        NYBBLE.choice(parse("q4_0+at0:hqq_4/f16"))


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"cards": 2}, "one device"),
        ({"weights": "exl3"}, "loads safetensors or a GGUF"),
        ({"quantization": "compressed-tensors"}, r"16 bits in the first forward pass: 57\.2 GiB"),
        ({"quantization": "bitsandbytes", "setting": parse("nyb4")}, "from unquantized weights"),
        ({"setting": parse("kivi4")}, "every token by itself"),
    ],
)
def test_refusals(more: dict[str, Any], match: str) -> None:
    with pytest.raises(NybbleError, match=match) as caught:
        NYBBLE.refuse(asked(**more))
    assert caught.value.seen and caught.value.allowed and caught.value.hint


def test_what_happens_without_a_word() -> None:
    assert NYBBLE.warnings(asked(hardware=Hardware())) == ()
    (cpu,) = NYBBLE.warnings(asked(hardware=Hardware("cpu")))
    assert "float32" in cpu
    (gpu,) = NYBBLE.warnings(asked())
    assert "measured on none yet" in gpu
    (apple,) = NYBBLE.warnings(asked(hardware=Hardware("apple", None, "M4")))
    assert "plain torch" in apple
    said = NYBBLE.warnings(asked(hardware=Hardware(), weights="gguf", sequences=3))
    assert any("57.2 GiB in 16 bits" in text for text in said)
    assert any("3 users wait" in text for text in said)
    unknown = replace(GEMMA, weights=None)
    (text,) = NYBBLE.warnings(asked(hardware=Hardware(), weights="gguf", geometry=unknown))
    assert "GiB" not in text


def test_launch() -> None:
    launch = NYBBLE.launch(asked(model="hf:org/m", port=8001, context=4096))
    assert launch.command == (
        "nybble", "generate", "org/m", "--kv", "q4_0/q4_0+latent", "--context", "4096", "--serve",
        "--host", "127.0.0.1", "--port", "8001",
    )  # fmt: skip
    assert launch.env == {} and not launch.image
    assert NYBBLE.launch(asked(keyed=True)).env == {KEY: f"${KEY}"}


def test_the_command_takes_what_is_launched() -> None:
    from nybble.cli.main import command

    words = NYBBLE.launch(asked()).command
    options = {o for p in command("generate").params for o in p.opts}
    assert {w for w in words if w.startswith("--")} <= options


def test_googles_own_checkpoint_is_refused_with_a_way_out() -> None:
    request = DeployRequest("gemma-4-31b-qat", "nybble", setting=parse("q4_0+latent"),
                            cards=CardChoice("rtx-4090"))  # fmt: skip
    with pytest.raises(NybbleError, match="first forward pass") as caught:
        deploy(request)
    assert "compressed-tensors" in str(caught.value.seen)
    assert "bitsandbytes" in str(caught.value.allowed)
