"""Deployments: what is chosen, and what is refused before an engine could fake it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nybble.errors import NybbleError
from nybble.formats.setting import parse
from nybble.loopback import loopback
from nybble.planning.request import CardChoice
from nybble.results.plans import Quality
from nybble.results.records import Estimate
from nybble.serving import deploy as deploying
from nybble.serving.deploy import USUAL_CONTEXT, DeployRequest, deploy

QAT = "gemma-4-31b-qat"
CARD = CardChoice(name="rtx-4090")


def asked(model: str = QAT, kv: str | None = "q8_0/q8_0", **more: object) -> DeployRequest:
    setting = parse(kv) if kv else None
    given: dict[str, object] = {"cards": CARD, **more}
    return DeployRequest(model, setting=setting, **given)  # type: ignore[arg-type]


def test_the_plan_decides_the_context() -> None:
    found = deploy(asked())
    assert found.deployment.context == USUAL_CONTEXT
    assert found.deployment.model.startswith("hf:google/gemma-4-31B-it-qat-q4_0-gguf/")
    assert found.fit.bytes_per_token == 43_520  # 10 global layers x 4 heads x 2 x 512 x 8.5 / 8


def test_a_context_that_does_not_fit_is_refused_with_the_one_that_does() -> None:
    with pytest.raises(NybbleError, match="does not fit") as caught:
        deploy(asked(context=200_000))
    assert caught.value.hint is not None
    largest = int(caught.value.hint.split()[-1])
    assert deploy(asked(context=largest)).deployment.context == largest


def test_a_context_beyond_the_models_is_refused() -> None:
    with pytest.raises(NybbleError, match="not made for such a context"):
        deploy(asked(context=1 << 20))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_others_reach_a_server_only_with_a_key(host: str) -> None:
    with pytest.raises(NybbleError, match="needs an API key"):
        asked(host=host)
    assert asked(host=host, keyed=True).host == host


@pytest.mark.parametrize(
    ("host", "is_it"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("localhost", True),
     ("0.0.0.0", False), ("localhost.example.org", False), ("", False)],
)  # fmt: skip
def test_loopback(host: str, is_it: bool) -> None:
    assert loopback(host) is is_it


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_ports(port: int) -> None:
    with pytest.raises(NybbleError, match="not a port"):
        asked(port=port)


@pytest.mark.parametrize(
    ("model", "engine", "kv", "card", "what"),
    [
        (QAT, "llama.cpp", "iq4_nl/iq4_nl", "rtx-4090", "would move attention to the CPU"),
        (QAT, "llama.cpp", "q8_0/q4_0", "m4-max-128gb", "equal K and V types"),
        (QAT, "vllm", "q4_0/q4_0", "rtx-4090", "KV type|KV setting"),
        ("deepseek-v2-lite", "llama.cpp", "q8_0/q4_0", "rtx-4090", "both types must be one"),
        (QAT, "exllamav3", "exl3_4/exl3_4", "m4-max-128gb", "does not run"),
        (QAT, "nothing", "q8_0/q8_0", "rtx-4090", "unknown engine"),
    ],
)  # fmt: skip
def test_what_an_engine_would_refuse_or_fake(
    model: str, engine: str, kv: str, card: str, what: str
) -> None:
    with pytest.raises(NybbleError, match=what):
        deploy(asked(model, kv, engine=engine, cards=CardChoice(name=card)))


def test_a_gguf_is_not_given_to_an_engine_that_loads_none(tiny_model: Path) -> None:
    with pytest.raises(NybbleError, match="not GGUF"):
        deploy(asked(str(tiny_model), "f16/f16", engine="vllm"))


def test_qat_weights_are_those_the_engine_loads() -> None:
    found = deploy(asked(QAT, "f16/f16", engine="vllm", cards=CardChoice(name="h100-sxm")))
    assert found.deployment.model == "google/gemma-4-31B-it-qat-w4a16-ct"
    assert found.deployment.quantization == "compressed-tensors"


def measured(kld: dict[str, tuple[float, float]]) -> dict[str, Quality]:
    return {
        kv: Quality(Estimate(mean, mean, high), None, "safe", QAT, True, 4096, "run")
        for kv, (mean, high) in kld.items()
    }


def test_auto_takes_the_smallest_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    klds = {"q8_0/q8_0": (0.001, 0.002), "q8_0/q4_0": (0.01, 0.015), "q4_0/q4_0": (0.015, 0.03)}
    monkeypatch.setattr("nybble.planning.plan.quality_of", lambda *_: measured(klds))
    found = deploy(asked(kv=None, max_kld=0.02))
    assert str(found.deployment.setting) == "q8_0/q4_0"  # q4_0/q4_0 by its upper end is above
    assert "0.01" in found.quality
    tight = deploy(asked(kv=None, max_kld=0.005))
    assert str(tight.deployment.setting) == "q8_0/q8_0"
    none = deploy(asked(kv=None, max_kld=0.0001))
    assert str(none.deployment.setting) == "f16/f16"
    assert any("no smaller setting was measured" in note for note in none.notes)


def test_auto_without_a_measurement_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # no ./nybble-results
    found = deploy(asked(kv=None))
    assert str(found.deployment.setting) == "f16/f16"
    assert any("nybble measure" in note for note in found.notes)
    with pytest.raises(NybbleError, match="no stored measurement"):
        deploy(asked(kv=None, max_kld=0.02))


def test_auto_does_not_take_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nybble.planning.plan.quality_of", lambda *_: {})
    with pytest.raises(NybbleError, match="holds this context"):
        deploy(asked(kv=None, context=131_072))
    assert deploying.MAX_KLD == 0.02
