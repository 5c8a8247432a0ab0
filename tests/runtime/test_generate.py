"""Sessions: the same text as transformers' own generation, and what they count, refuse and keep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch  # noqa: E402
from generate_models import CONTEXT, folder, model, runtime, text  # noqa: E402

from nybble.errors import NybbleError  # noqa: E402
from nybble.models.checkpoint import resolve  # noqa: E402
from nybble.runtime import generate  # noqa: E402
from nybble.runtime.generate import Limits, Session  # noqa: E402
from nybble.runtime.sampling import Sampler, Sampling  # noqa: E402

WORDS = "A nybble is four bits, half of a byte. " * 4


def ids(words: str = WORDS) -> list[int]:
    return text().prompt(words)


def answer(session: Session, given: Sequence[int], n: int = 12, **options: Any) -> list[int]:
    return list(session.stream(given, Limits(n), **options))


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt-oss"])
def test_tokens_are_those_of_transformers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "CHUNK", 32)  # the prompt comes in parts
    given = [i % 250 + 3 for i in ids()][:100]
    stock = model(kind)
    stock.set_attn_implementation("eager")
    wanted = stock.generate(
        torch.tensor([given]), max_new_tokens=12, do_sample=False, eos_token_id=None
    )[0, len(given) :].tolist()
    session = runtime("f32/f32", kind).session()
    assert answer(session, given) == wanted
    assert session.tokens == [*given, *wanted[:-1]] and session.pending == wanted[-1:]
    assert session.cache.get_seq_length() == len(session.tokens)


class TestReport:
    def test_counts_tokens_and_bytes(self) -> None:
        session = runtime().session()
        made = answer(session, ids())
        report = session.report
        assert (report.prompt_tokens, report.new_tokens) == (len(ids()), len(made))
        assert report.finish == "length" and report.decode_steps == len(made) - 1
        assert report.bytes_stored == session.cache.bytes_stored() > 0
        # 2 layers, 2 KV heads, 64 channels, K and V, 2 bytes
        assert report.bytes_16bit == len(session.tokens) * 2 * 2 * 64 * 2 * 2
        assert report.bytes_stored < report.bytes_16bit
        assert report.kv == "q8_0/q4_0" and report.kernel
        assert report.prefill_rate > 0 and report.decode_rate > 0
        assert json.loads(json.dumps(report.as_dict()))["decode_tokens_per_second"] > 0

    def test_the_prompt_is_told_in_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(generate, "CHUNK", 50)
        told: list[tuple[int, int]] = []
        answer(runtime().session(), ids()[:120], 1, on_prefill=lambda *n: told.append(n))
        assert told == [(50, 120), (100, 120), (120, 120)]


class TestEnds:
    def test_at_an_end_token_which_is_neither_given_nor_kept(self) -> None:
        free = answer(runtime().session(), ids())
        end = free[5]
        session = runtime().session()
        made = list(session.stream(ids(), Limits(12, frozenset([end]))))
        assert made == free[: free.index(end)]
        assert session.report.finish == "stop" and session.tokens == [*ids(), *made]

    def test_at_the_end_of_the_context(self) -> None:
        session = runtime(context=len(ids()) + 5).session()
        assert len(answer(session, ids(), 100)) == 5
        assert session.report.finish == "context"

    def test_where_the_caller_says(self) -> None:
        session, made = runtime().session(), []
        limits = Limits(50, stopped=lambda: len(made) == 3)
        for token in session.stream(ids(), limits):
            made.append(token)
        assert len(made) == 3 and session.report.finish == "cancelled"

    def test_within_the_prompt(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(generate, "CHUNK", 10)
        asked: list[int] = []

        def stopped() -> bool:
            asked.append(1)
            return len(asked) > 2

        session = runtime().session()
        assert list(session.stream(ids(), Limits(5, stopped=stopped))) == []
        assert session.tokens == ids()[:20] and session.report.finish == "cancelled"

    def test_a_limit_of_nothing_reads_the_prompt(self) -> None:
        session = runtime().session()
        assert answer(session, ids(), 0) == [] and session.tokens == ids()
        assert session.report.finish == "length"


class TestContinuation:
    def test_a_second_turn_reads_only_what_is_new(self) -> None:
        whole, parts = runtime("f32/f32").session(), runtime("f32/f32").session()
        first = answer(parts, ids(), 5)
        second = answer(parts, text().more("and more"), 5)
        assert parts.report.cached_tokens == len(ids()) + 4  # the last token came with the turn
        assert parts.report.prompt_tokens == len(ids()) + 5 + len("and more")
        assert answer(whole, [*ids(), *first, *text().more("and more")], 5) == second

    def test_rest_is_what_the_cache_lacks(self) -> None:
        session = runtime().session()
        answer(session, ids(), 1)
        assert session.rest([*ids(), 7, 8]) == [7, 8]
        assert session.rest(ids()) is None and session.rest([9, *ids()]) is None

    def test_a_saved_prefix_goes_on_as_the_sequence_would(self, tmp_path: Path) -> None:
        session = runtime().session()
        made = answer(session, ids(), 4)
        session.save(tmp_path / "prefix.kv")
        assert session.pending == [] and session.tokens == [*ids(), *made]
        again = runtime().load(tmp_path / "prefix.kv")
        assert again.tokens == session.tokens
        more = text().more(" so ")
        assert answer(again, more) == answer(session, more)

    def test_a_prefix_of_another_setting_is_refused(self, tmp_path: Path) -> None:
        session = runtime().session()
        answer(session, ids(), 1)
        session.save(tmp_path / "prefix.kv")
        with pytest.raises(NybbleError, match="another KV setting"):
            runtime("q4_0/q4_0").load(tmp_path / "prefix.kv")
        with pytest.raises(NybbleError, match="fills the context"):
            runtime(context=20).load(tmp_path / "prefix.kv")

    def test_nothing_cannot_be_saved(self, tmp_path: Path) -> None:
        with pytest.raises(NybbleError, match="nothing in the cache"):
            runtime().session().save(tmp_path / "prefix.kv")


class TestSampling:
    def test_a_seed_gives_the_same_text_and_another_one_another(self) -> None:
        def drawn(seed: int | None) -> list[int]:
            sampling = Sampling(1.5, seed=seed)
            return answer(runtime().session(), ids(), 20, sampling=sampling)

        assert drawn(1) == drawn(1) != drawn(2)
        assert drawn(None) != drawn(None)

    def test_draws_do_not_touch_the_global_generator(self) -> None:
        torch.manual_seed(3)
        wanted = torch.rand(1)
        torch.manual_seed(3)
        answer(runtime().session(), ids(), 3, sampling=Sampling(1.0))
        assert torch.equal(torch.rand(1), wanted)

    @pytest.mark.parametrize("sampling", [Sampling(1.0, top_p=1e-6), Sampling(1.0, top_k=1)])
    def test_a_narrow_choice_is_the_likeliest(self, sampling: Sampling) -> None:
        logits = torch.tensor([0.1, 0.5, 0.4])
        assert Sampler(sampling, logits.device).draw(logits) == 1

    @pytest.mark.parametrize(
        "options",
        [{"temperature": -1}, {"temperature": 2.5}, {"temperature": float("nan")}, {"top_p": 0},
         {"top_p": 1.1}, {"top_k": -1}, {"seed": -1}],
    )  # fmt: skip
    def test_values_out_of_range_are_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(NybbleError, match="out of range"):
            Sampling(**options)

    def test_logits_that_are_no_numbers_are_refused(self) -> None:
        with pytest.raises(NybbleError, match="not numbers"):
            Sampler(Sampling(), torch.device("cpu")).draw(torch.tensor([0.0, float("nan")]))


class TestRefused:
    def test_prompts(self) -> None:
        made = runtime()
        for given, match in (([], "empty"), ([1] * CONTEXT, "does not fit"), ([1, 260], "token"),
                             ([-1], "token")):  # fmt: skip
            with pytest.raises(NybbleError, match=match):
                made.check(given)
            with pytest.raises(NybbleError, match=match):
                answer(made.session(), given)

    def test_a_turn_that_no_longer_fits_leaves_the_session_as_it_is(self) -> None:
        session = runtime(context=len(ids()) + 8).session()
        answer(session, ids(), 4)
        before = list(session.tokens)
        with pytest.raises(NybbleError, match="behind"):
            answer(session, ids())
        assert session.tokens == before and len(session.pending) == 1

    @pytest.mark.parametrize("context", [0, 1, 4096])
    def test_contexts(self, context: int) -> None:
        with pytest.raises(NybbleError, match="context is out of range"):
            runtime(context=context)

    def test_settings_before_a_prompt(self) -> None:
        with pytest.raises(NybbleError, match="calibration"):
            runtime("nyb4/nyb4")
        with pytest.raises(NybbleError, match="tokens together"):
            runtime("kivi_k4/kivi_v4")

    def test_latent_without_such_layers(self) -> None:
        with pytest.raises(NybbleError, match="keys follow from their values"):
            runtime(latent=True)


def test_the_folder_is_what_the_tests_think() -> None:
    assert resolve(folder()).chat_template
