"""Largest contexts and most users equal a scan of everything that could be."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_shapes import DEEPSEEK_V3, GEMMA3, GEMMA4, GEMMA4_E4B, GPT_OSS, LLAMA, QWEN3_NEXT, full
from plan_shapes import geometry as shape

from nybble.errors import NybbleError
from nybble.formats.setting import KVSetting, parse
from nybble.models.geometry import Geometry
from nybble.planning import solve
from nybble.planning.memory.base import Load, Memory, MemoryModel, Part
from nybble.planning.memory.exllamav2 import ExLlamaV2
from nybble.planning.memory.exllamav3 import ExLlamaV3
from nybble.planning.memory.lmdeploy import LMDeploy
from nybble.planning.memory.mlx_lm import MlxLm
from nybble.planning.memory.nybble import Nybble
from nybble.planning.memory.sglang import SGLang
from nybble.planning.memory.tensorrt_llm import TensorRTLLM
from nybble.planning.memory.transformers import Transformers
from nybble.planning.memory.vllm import VLLM
from nybble.planning.solve import Budget, Solver

F16 = parse("f16")
ENGINES = (ExLlamaV2(), ExLlamaV3(), LMDeploy(), MlxLm(), Nybble(), SGLang(), TensorRTLLM(),
           Transformers(), VLLM())  # fmt: skip


class Tiny(MemoryModel):
    """Something fixed, something for each sequence, a block of tokens, a share for each card."""

    engine, version, source, settings = "tiny", "1", "here", ("f16/f16",)

    def __init__(self, fixed: int, each: int, token: int, block: int) -> None:
        self.numbers = fixed, each, token, block

    def check(self, geometry: Geometry, setting: KVSetting) -> None:
        raise AssertionError("a solver is given what was checked before")

    def memory(self, geometry: Geometry, setting: KVSetting, load: Load) -> Memory:
        fixed, each, token, block = self.numbers
        tokens = -(-load.context // block) * block * load.sequences
        n_bytes = fixed * load.cards + each * load.sequences + token * tokens
        return Memory((Part("cache", "all", n_bytes, ""),))


def solver(engine: MemoryModel, length: int, budget: Budget) -> Solver:
    return Solver(engine, shape("x", [full(1, 8)], context_length=length), F16, budget)


TINY = st.builds(
    Tiny, st.integers(0, 500), st.integers(0, 50), st.integers(0, 5), st.integers(1, 700)
)
BUDGETS = st.builds(Budget, st.integers(0, 12_000), st.integers(1, 3), st.integers(0, 500))


@settings(max_examples=200)
@given(TINY, st.integers(1, 5000), BUDGETS, st.integers(1, 9))
def test_largest_context_equals_a_scan(
    engine: Tiny, length: int, budget: Budget, sequences: int
) -> None:
    load = Load(1, sequences, budget.cards)
    steps = [n for n in range(256, length, 256)] + [length]
    fits = [
        n
        for n in steps
        if engine.memory(GEMMA4, F16, replace(load, context=n)).total <= budget.total
    ]
    assert solver(engine, length, budget).largest_context(load) == max(fits, default=0)


@settings(max_examples=40)
@given(TINY, BUDGETS, st.integers(1, 2000))
def test_most_users_equal_a_scan(engine: Tiny, budget: Budget, context: int) -> None:
    load = Load(context, cards=budget.cards)
    fits = [
        n
        for n in range(1, solve.MOST_USERS + 1)
        if engine.memory(GEMMA4, F16, replace(load, sequences=n)).total <= budget.total
    ]
    assert solver(engine, 9999, budget).most_users(load) == max(fits, default=0)


def test_by_hand() -> None:
    # 1,000 B less 40 in reserve, 100 B fixed: 860 tokens of 1 B fit, 768 in steps of 256.
    budget = Budget(1000, 1, 40)
    found = solver(Tiny(100, 0, 1, 1), 4096, budget)
    assert found.largest_context(Load(1)) == 768
    assert found.largest_context(Load(1, sequences=2)) == 256
    assert found.largest_context(Load(1, sequences=4)) == 0
    assert found.most_users(Load(100)) == 8
    # The model's own length is not cut to steps.
    assert solver(Tiny(100, 0, 1, 1), 700, budget).largest_context(Load(1)) == 700
    # Cards count from the budget, whatever the load says.
    assert solver(Tiny(100, 0, 1, 1), 4096, replace(budget, cards=2)).fits(Load(1720, cards=9))
    assert not solver(Tiny(100, 0, 1, 1), 4096, replace(budget, cards=2)).fits(Load(1721))


def test_reserves_larger_than_the_card_leave_nothing() -> None:
    assert Budget(100, 4, 300).total == 0
    assert Budget(100, 4, 30).total == 280
    assert solver(Tiny(1, 0, 0, 1), 4096, Budget(100, 4, 300)).most_users(Load(1)) == 0


def test_users_end_somewhere() -> None:
    assert solver(Tiny(0, 0, 0, 1), 4096, Budget(1)).most_users(Load(1)) == solve.MOST_USERS


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.engine)
@pytest.mark.parametrize(
    "model", [LLAMA, GEMMA3, GEMMA4, GEMMA4_E4B, GPT_OSS, QWEN3_NEXT, DEEPSEEK_V3],
    ids=lambda g: g.architecture,
)  # fmt: skip
def test_engines_only_ever_grow(engine: MemoryModel, model: Geometry) -> None:
    # What the search rests on: longer contexts and more users take no less, in any setting.
    contexts = [1, 100, 128, 256, 4864, 4999, 5000, 5001, 5120, 6143, 6145, 9000, 20_000, 131_072]
    users = [1, 2, 3, 7, 64, 500]
    passed = 0
    for name in engine.settings:
        setting = parse(name)
        try:
            engine.check(model, setting)
        except NybbleError:
            continue
        passed += 1
        for loads in ([Load(n) for n in contexts], [Load(5000, n) for n in users]):
            totals = [engine.memory(model, setting, load).total for load in loads]
            assert totals == sorted(totals), name
    refused = {"exllamav2": (GEMMA4_E4B, QWEN3_NEXT, DEEPSEEK_V3), "lmdeploy": (GEMMA4, GEMMA4_E4B),
               "nybble": (QWEN3_NEXT, DEEPSEEK_V3)}  # fmt: skip
    assert bool(passed) == (model not in refused.get(engine.engine, ()))
