"""`plan`: every row against its own memory model, what is refused, what is chosen."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from test_evidence import model, row, store

from nybble.errors import NybbleError
from nybble.formats.setting import parse
from nybble.models.found import find
from nybble.planning.memory.base import Load
from nybble.planning.memory.cards import CONTEXT_BYTES, GIB
from nybble.planning.memory.registry import ENGINES, memory_model
from nybble.planning.plan import plan, written
from nybble.planning.request import CardChoice, PlanRequest
from nybble.results.plans import Plan

MODEL = "gemma-4-31b-qat"
CARD = CardChoice("rtx-4090")
TYPES = ("f16/f16", "q8_0/q8_0", "q8_0/q4_0", "q4_0/q4_0")


def make(**asked: Any) -> Plan:
    kv = asked.pop("kv", TYPES)
    fields: dict[str, Any] = {"model": MODEL, "cards": CARD, "engines": ("llama.cpp",)} | asked
    return plan(PlanRequest(settings=tuple(map(parse, kv)), **fields))


class TestRows:
    def test_every_number_is_the_memory_models(self) -> None:
        made = make(users=2, ubatch=256)
        model, geometry = memory_model("llama.cpp"), find(MODEL).geometry
        assert made.contexts == (8192, 32_768, 131_072, 262_144)
        for fit in made.fits:
            for context, n_bytes in fit.memory.items():
                load = Load(context, 2, ubatch=256, card_bytes=24_564 << 20, vendor="nvidia")
                of_engine = model.memory(geometry, parse(fit.setting), load).total
                assert n_bytes == of_engine + CONTEXT_BYTES

    def test_largest_is_the_last_that_fits(self) -> None:
        made = make()
        assert made.budget == (24_564 << 20) - GIB // 2
        for fit in made.fits:
            assert fit.largest_context and fit.limited_by == "card"
            edge = make(kv=(fit.setting,), context=fit.largest_context + 256).fits[0]
            assert edge.memory[fit.largest_context + 256] > made.budget
            edge = make(kv=(fit.setting,), context=fit.largest_context).fits[0]
            assert edge.memory[fit.largest_context] <= made.budget

    def test_fewer_bits_hold_more(self) -> None:
        fits = make().fits
        assert [f.setting for f in fits] == list(TYPES)
        for a, b in zip(fits, fits[1:], strict=False):
            assert a.bits > b.bits and a.bytes_per_token > b.bytes_per_token
            assert (a.largest_context or 0) < (b.largest_context or 0)

    def test_bytes_a_token_are_the_published_ones(self) -> None:
        """43,520 and 23,040 bytes: 10 global layers, 4 heads of 512, K and V."""
        by = {f.setting: f.bytes_per_token for f in make().fits}
        assert (by["f16/f16"], by["q8_0/q8_0"], by["q4_0/q4_0"]) == (81_920, 43_520, 23_040)

    def test_users(self) -> None:
        made = make()
        for fit in made.fits:
            for context, users in fit.users.items():
                if users:
                    assert make(kv=(fit.setting,), users=users).fits[0].memory[context] <= (
                        made.budget or 0
                    )
                more = make(kv=(fit.setting,), users=users + 1).fits[0].memory[context]
                assert more > (made.budget or 0)

    def test_parts_add_up_to_the_explained_total(self) -> None:
        for fit in make(context=32_768).fits:
            assert fit.explained == 32_768
            assert sum(p.n_bytes for p in fit.parts) == fit.memory[32_768]
            assert all(p.formula for p in fit.parts)

    def test_curve_only_when_asked_for(self) -> None:
        assert not make().fits[0].curve
        fit = make(curve=True).fits[0]
        assert list(fit.curve) == sorted(fit.curve) and max(fit.curve) == 262_144
        assert fit.curve[262_144] == fit.memory[262_144] and len(fit.curve) > 20

    def test_without_a_card_sizes_alone(self) -> None:
        made = make(cards=CardChoice())
        assert made.card is None and made.budget is None
        for fit in made.fits:
            assert fit.memory and not fit.users and not fit.decode
            assert fit.largest_context is None and fit.limited_by is None

    def test_speed_is_an_interval_and_only_where_it_fits(self) -> None:
        made = make()
        for fit in made.fits:
            fits = {c for c in made.contexts if c <= (fit.largest_context or 0)}
            assert set(fit.decode) == set(fit.prefill) == fits
            for low, high in (*fit.decode.values(), *fit.prefill.values()):
                assert 0 < low < high
        assert {a.name for a in made.assumptions} > {"bandwidth", "dense FP16 rate"}

    def test_two_cards_hold_more_than_twice_the_context(self) -> None:
        one, two = make(), make(cards=CardChoice("2xrtx-4090"))
        for a, b in zip(one.fits, two.fits, strict=True):
            assert (b.largest_context or 0) > 2 * (a.largest_context or 0) or (
                b.limited_by == "model"
            )

    def test_modes_are_called_by_their_engines_names(self) -> None:
        assert written(parse("turboquant_4bit_nc")) == "turboquant_4bit_nc"
        assert written(parse("q8_0/q4_0")) == "q8_0/q4_0"

    def test_plain_data(self) -> None:
        made = make()
        assert json.loads(json.dumps(made.as_dict()))["fits"][0]["setting"] == "f16/f16"


class TestEngines:
    def test_all_engines_that_run_it_by_default(self) -> None:
        made = plan(PlanRequest(MODEL, cards=CARD))
        seen = {f.engine for f in made.fits}
        assert {"llama.cpp", "ollama", "vllm", "sglang", "transformers"} <= seen
        assert "mlx-lm" not in seen

    @pytest.mark.parametrize("engine", ENGINES)
    def test_each(self, engine: str) -> None:
        card = CardChoice("m4-max" if engine == "mlx-lm" else "h100")
        made = plan(PlanRequest("llama-3.1-8b", cards=card, engines=(engine,)))
        assert {f.engine for f in made.fits} == {engine}
        kept = [f for f in made.fits if not f.refused]
        assert kept and kept[0].setting == "f16/f16" and kept[0].largest_context
        for fit in kept:
            assert all(n > 0 for n in fit.memory.values())

    def test_a_card_it_does_not_run_on(self) -> None:
        made = plan(PlanRequest(MODEL, cards=CARD, engines=("llama.cpp", "mlx-lm")))
        refused = [f for f in made.fits if f.engine == "mlx-lm"]
        assert len(refused) == 1 and "does not run on rtx-4090" in (refused[0].refused or "")

    def test_nothing_runs(self) -> None:
        with pytest.raises(NybbleError, match="no engine asked for") as e:
            make(engines=("vllm",), kv=("q4_0/q4_0",))
        assert "q4_0/q4_0" in (e.value.seen or "")

    @pytest.mark.parametrize(
        ("asked", "words"),
        [
            ({"engines": ("llama-cpp",)}, ("unknown engine", "llama.cpp")),
            ({"model": "gemma-4-31"}, ("catalogue", "gemma-4-31b")),
            ({"model": "no/such.gguf"}, ("no/such.gguf",)),
            ({"cards": CardChoice("rtx-4091")}, ("unknown card", "rtx-4090")),
            ({"cards": CardChoice("0xrtx-4090")}, ("above 0",)),
            ({"cards": CardChoice("rtx-4090", reserve_gib=30)}, ("nothing of the card",)),
            ({"context": 262_145}, ("not made for", "262,144")),
            ({"results": (Path("nowhere"),)}, ("no measurements",)),
        ],
    )
    def test_refused(self, asked: dict[str, Any], words: tuple[str, ...]) -> None:
        with pytest.raises(NybbleError) as e:
            make(**asked)
        for word in words:
            assert word in str(e.value)

    @pytest.mark.parametrize(
        "asked",
        [{"context": 0}, {"context": -1}, {"users": 0}, {"ubatch": 0}, {"max_kld": -0.1},
         {"max_kld": float("nan")}, {"split": "rows"}],
    )  # fmt: skip
    def test_numbers_that_mean_nothing(self, asked: dict[str, Any]) -> None:
        with pytest.raises(NybbleError):
            PlanRequest(MODEL, **asked)

    @pytest.mark.parametrize(
        "asked",
        [{"name": "rtx-4090", "here": True}, {"memory_gib": 24.0}, {"name": "x", "count": 0},
         {"name": "x", "reserve_gib": -1.0}],
    )  # fmt: skip
    def test_cards_that_mean_nothing(self, asked: dict[str, Any]) -> None:
        with pytest.raises(NybbleError):
            CardChoice(**asked)


class TestChoice:
    def test_the_least_loss_that_fits(self) -> None:
        made = make(context=131_072)
        assert made.choice and made.choice.setting == "q8_0/q4_0"
        assert made.choice.engine == "llama.cpp" and "131,072 tokens" in made.choice.why
        assert all(c.endswith("for less loss") for c in made.choice.changes)

    def test_sixteen_bits_where_they_fit(self) -> None:
        made = make(context=8192)
        assert made.choice and made.choice.setting == "f16/f16" and not made.choice.changes

    def test_another_kv_type_before_another_card(self) -> None:
        made = make(context=131_072, kv=("f16/f16",))
        assert made.choice and made.choice.setting is None
        assert made.choice.changes[0].startswith("--kv q8_0/q4_0")
        assert any(c.startswith("--gpu 2xrtx-4090") for c in made.choice.changes)

    def test_every_change_would_do(self) -> None:
        made = make(context=262_144, users=3)
        assert made.choice and made.choice.setting is None and made.choice.changes
        for text in made.choice.changes:
            words = text.replace(":", "").split()
            if words[0] == "--gpu":
                again = make(context=262_144, users=3, cards=CardChoice(words[1]),
                             kv=(words[-1],))  # fmt: skip
            elif words[0] == "--context":
                again = make(context=int(words[1]), users=3, kv=(words[-1],))
            else:
                again = make(context=262_144, users=int(words[1]), kv=(words[-1],))
            assert again.choice and again.choice.setting == words[-1], text

    def test_quality_of_this_family_is_used_and_marked(self, tmp_path: Path) -> None:
        kld = {"q8_0/q8_0": 0.001, "q8_0/q4_0": 0.3, "q4_0/q4_0": 0.04}
        store(tmp_path / "run", *(row(s, v) for s, v in kld.items()),
              models=(model(architecture="gemma4", name="Gemma 4 12B"),))  # fmt: skip
        made = make(results=(tmp_path,))
        by = {f.setting: f.quality for f in made.fits}
        assert by["f16/f16"] is None
        for setting, value in kld.items():
            found = by[setting]
            assert found and found.mean_kld.value == value and not found.same_model
        # 0.001 to 0.002 and 0.02 to 0.08: the interval's upper end must be within the bound.
        for most, want in ((0.0, "f16/f16"), (0.002, "q8_0/q8_0"), (0.0799, "q8_0/q8_0"),
                           (0.08, "q4_0/q4_0")):  # fmt: skip
            found_choice = make(results=(tmp_path,), max_kld=most).choice
            assert found_choice and found_choice.setting == want
        why = make(results=(tmp_path,), max_kld=0.08).choice
        assert why and "measured on Gemma 4 12B" in why.why and "205,056" in why.why
        # Measured loss decides the order, not bits.
        picked = make(results=(tmp_path,), context=131_072).choice
        assert picked and picked.setting == "q4_0/q4_0"

    def test_needs_a_card(self) -> None:
        with pytest.raises(NybbleError, match="depends on a card"):
            make(cards=CardChoice(), context=8192)

    def test_a_quality_that_was_never_measured(self, tmp_path: Path) -> None:
        with pytest.raises(NybbleError, match="no stored measurement") as e:
            make(max_kld=0.02, results=(tmp_path,))
        assert "nybble measure" in (e.value.hint or "")


def test_requests_are_values() -> None:
    asked = PlanRequest(MODEL, cards=CARD)
    assert dataclasses.replace(asked) == asked and hash(asked) == hash(dataclasses.replace(asked))
