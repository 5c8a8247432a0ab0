"""`verify` on what answers as vLLM does: an echo confirms nothing, and garbage is broken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from nybble.formats.setting import parse
from nybble.serving.verify import VerifyRequest, verify
from server_fakes import N_VOCAB, FakeVLLM, Running

INT4 = "int4_per_token_head"


def byte_ids(text: str) -> list[int]:
    return [3 + byte for byte in text.encode()]


@dataclass
class Sane(FakeVLLM):
    """Knows the text it is asked for: every token is the likely one, but for a cache's error."""

    owned: str = "vllm"
    seen: list[int] = field(default_factory=list)

    def get(self, path: str) -> object:
        found = super().get(path)
        if path == "/v1/models":
            for model in found["data"]:
                model["owned_by"] = self.owned
        return found

    def post(self, path: str, body: dict[str, object]) -> object:
        if isinstance(body.get("prompt"), list):
            self.seen = list(body["prompt"])  # type: ignore[call-overload]
        return super().post(path, body)

    def row(self, prefix: Sequence[int]) -> np.ndarray:
        found = super().row(prefix).copy()
        if len(prefix) < len(self.seen):
            found[self.seen[len(prefix)]] += 12.0
        return (found - np.logaddexp.reduce(found)).astype(np.float32)


@dataclass
class Garbage(Sane):
    """As vLLM's CPU backend with int4: what comes is no likelier than chance."""

    def row(self, prefix: Sequence[int]) -> np.ndarray:
        return np.full(N_VOCAB, -np.log(N_VOCAB), dtype=np.float32) + np.float32(
            -8.0 * (np.arange(N_VOCAB) % 2)
        )


def test_an_echo_of_a_server_that_behaves_is_unproven() -> None:
    with Running(Sane(kv="auto", tokenize=byte_ids)) as url:
        found = verify(VerifyRequest(url, parse("bf16/bf16")))
    by = {c.name: c for c in found.checks}
    assert found.engine == "vllm" and by["K type"].state == "echo"
    assert by["behaviour"].state == "ok" and found.outcome == "unproven"


def test_int4_that_answers_garbage_is_broken() -> None:
    with Running(Garbage(kv=INT4, tokenize=byte_ids)) as url:
        found = verify(VerifyRequest(url, parse(f"{INT4}/{INT4}")))
    assert {c.name: c.state for c in found.checks}["K type"] == "echo"
    assert found.outcome == "broken" and "garbage" in found.why


def test_far_from_the_16_bit_server_is_broken() -> None:
    plain, other = Sane(tokenize=byte_ids), Sane(kv=INT4, noise=8.0, tokenize=byte_ids)
    with Running(plain) as reference, Running(other) as url:
        near = verify(VerifyRequest(reference, reference=reference))
        far = verify(VerifyRequest(url, parse(f"{INT4}/{INT4}"), reference=reference))
    assert "0 nat a token from the reference" in near.checks[-1].observed
    assert far.outcome == "broken" and "from the reference" in far.why
