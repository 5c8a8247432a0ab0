"""The runtime's memory: published shapes by hand, and equal to what real caches hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from plan_shapes import DEEPSEEK_V3, GEMMA4, GEMMA4_E4B, LLAMA, QWEN3_NEXT, full, geometry
from sparse_gguf import gemma4

from nybble.errors import NybbleError
from nybble.formats.setting import parse
from nybble.models.found import find
from nybble.models.geometry import Geometry
from nybble.planning.memory.base import Load, Memory
from nybble.planning.memory.nybble import CHUNK, PAGE, SCORES, TILE, Nybble
from nybble.planning.plan import plan as make
from nybble.planning.request import CardChoice, PlanRequest
from nybble.planning.roofline import cache_bytes

MODEL = Nybble()
CARD = CardChoice("rtx-4090")
# Gemma 4's growing part, bytes a token: global layers x KV heads x 512 elements x bits / 8.
GROWS = {
    "gemma-4-31b": {"f16/f16": 81_920, "q8_0/q8_0": 43_520, "q4_0/q4_0": 23_040,
                    "f16/f16+latent": 40_960, "q8_0/q8_0+latent": 21_760,
                    "q4_0/q4_0+latent": 11_520, "q8_0/q4_0+latent": 21_760,
                    "nyb4/nyb4": 22_400, "nyb4/nyb4+latent": 10_880},
    "gemma-4-26b-a4b": {"q8_0/q8_0": 10_880, "q4_0/q4_0": 5_760, "q8_0/q8_0+latent": 5_440,
                        "q4_0/q4_0+latent": 2_880},
    "gemma-4-12b": {"q8_0/q8_0": 8_704, "q4_0/q4_0": 4_608, "q8_0/q8_0+latent": 4_352,
                    "q4_0/q4_0+latent": 2_304},
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny tensors: threads would only wait for each other."""
    if not find_spec("torch"):
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plan(model: Geometry, kv: str, **load: Any) -> Memory:
    chosen = parse(kv)
    MODEL.check(model, chosen)
    return MODEL.memory(model, chosen, Load(**load))


def parts(memory: Memory, word: str) -> int:
    return sum(p.n_bytes for p in memory.parts if word in p.name)


class TestPublishedShapes:
    @pytest.mark.parametrize(
        ("name", "kv", "each"), [(n, kv, b) for n, by in GROWS.items() for kv, b in by.items()]
    )
    def test_bytes_of_a_token(self, name: str, kv: str, each: int) -> None:
        model = find(name).geometry
        for users in (1, 3):
            near, far = (plan(model, kv, context=c, sequences=users) for c in (65_536, 131_072))
            assert far.of("cache") - near.of("cache") == users * 65_536 * each
            assert far.of("scratch", "compute") == near.of("scratch", "compute")
        (row,) = make(PlanRequest(name, engines=("nybble",), settings=(parse(kv),))).fits
        assert row.bytes_per_token == each

    @pytest.mark.parametrize("size", ["31B", "26B-A4B", "12B"])
    def test_a_gguf_says_the_same(self, tmp_path: Path, size: str) -> None:
        model = find(str(gemma4(tmp_path / "m.gguf", size=size))).geometry
        by = GROWS[f"gemma-4-{size.lower()}"]
        near, far = (plan(model, "q4_0+latent", context=c) for c in (65_536, 131_072))
        assert far.of("cache") - near.of("cache") == 65_536 * by["q4_0/q4_0+latent"]

    def test_by_hand(self) -> None:
        # 31B at 100,000 tokens: 1,563 pages; 50 sliding layers hold 17 pages of 64.
        memory = plan(find("gemma-4-31b").geometry, "q4_0+latent", context=100_000)
        assert parts(memory, "latents of 10 global") == 1_563 * 64 * 11_520
        window = 50 * 16 * 2 * 144
        assert memory.of("cache") == 1_563 * 64 * 11_520 + 17 * 64 * window
        # A chunk of 512 behind 1,023 tokens, up to 63 dead ones before them: 25 pages.
        assert parts(memory, "in prefill") == (25 - 17) * 64 * window

    def test_short_contexts(self) -> None:
        for context, pages in ((1, 1), (64, 1), (65, 2), (1024, 16), (1088, 17), (1089, 17)):
            memory = plan(GEMMA4, "q4_0", context=context)
            assert parts(memory, "50 sliding layers (q4_0)") == pages * 64 * 50 * 16 * 2 * 144
        assert parts(plan(GEMMA4, "q4_0", context=1088), "in prefill") == 0

    def test_shared_layers_count_once(self) -> None:
        memory = plan(GEMMA4_E4B, "q8_0", context=6400)
        assert parts(memory, "4 global layers") == 6400 * 4 * 2 * 2 * 544

    def test_tokens_in_sixteen_bits(self) -> None:
        # nyb4: 4 protected tokens have a page of their own in each of 32 layers; K 72, V 68 B.
        memory = plan(LLAMA, "nyb4", context=6404)
        assert parts(memory, "first tokens") == 32 * 64 * 8 * 2 * 256
        assert parts(memory, "32 global layers (nyb4)") == 6400 * 32 * 8 * (72 + 68)
        assert parts(plan(LLAMA, "nyb4+first0", context=6404), "first tokens") == 0
        # Tokens of a window are packed too. 128 behind 63 dead ones: 3 pages; with a chunk, 11.
        memory = plan(LLAMA, "q4_0+recent128", context=6400)
        assert parts(memory, "32 global layers (q4_0)") == 6400 * 32 * 8 * 144
        assert parts(memory, "last tokens of 32 global layers, f16 (f16)") == 192 * 32 * 8 * 512
        assert parts(memory, "last tokens of 32 global layers, f16, in") == 512 * 32 * 8 * 512
        assert plan(LLAMA, "f16+recent128", context=640) == plan(LLAMA, "f16", context=640)
        memory = plan(LLAMA, "q4_0+skip0.-1", context=640)
        assert parts(memory, "2 global layers (f16)") == 640 * 2 * 8 * 512
        assert parts(memory, "30 global layers (q4_0)") == 640 * 30 * 8 * 144

    def test_a_chunk_is_all_that_a_prompt_adds(self) -> None:
        one = plan(GEMMA4, "q4_0", context=CHUNK)
        for context in (4096, 262_144):
            memory = plan(GEMMA4, "q4_0", context=context)
            assert memory.of("compute") == one.of("compute")
        small = plan(GEMMA4, "q4_0", context=4096, ubatch=128)
        assert small.of("compute", "scratch") < memory.of("compute", "scratch")


class TestPlans:
    def test_the_whole_context_on_24_gb(self) -> None:
        made = make(PlanRequest("gemma-4-31b-qat", cards=CARD, engines=("nybble",)))
        by = {fit.setting: fit for fit in made.fits}
        assert list(by) == ["f16/f16", "q8_0/q8_0", "nyb4/nyb4", "q4_0/q4_0", "f16/f16+latent",
                            "q8_0/q8_0+latent", "q4_0/q4_0+latent"]  # fmt: skip
        assert by["q4_0/q4_0+latent"].largest_context == 262_144
        assert by["q8_0/q8_0+latent"].largest_context == 262_144
        assert (by["q8_0/q8_0"].largest_context or 0) < 262_144
        # Room for weights whose tables stay in 16 bits: 3 GiB.
        left = (made.budget or 0) - by["q4_0/q4_0+latent"].memory[262_144]
        assert left > 2.8 * 2**30
        assert by["q4_0/q4_0+latent"].bits == 4.5 and by["f16/f16+latent"].bits == 16
        assert not any(fit.decode or fit.prefill for fit in made.fits)  # nobody timed it
        assert any("no speed is told" in note for note in by["q4_0/q4_0"].notes)

    def test_latents_are_listed_where_a_model_has_some(self) -> None:
        made = make(PlanRequest("llama-3.1-8b", engines=("nybble",)))
        assert not any("latent" in fit.setting or fit.refused for fit in made.fits)

    def test_nobody_else_keeps_latents(self) -> None:
        setting = (parse("q4_0+latent"),)
        made = make(PlanRequest("gemma-4-31b-qat", cards=CARD, settings=setting))
        assert [fit.engine for fit in made.fits if not fit.refused] == ["nybble"]

    def test_attention_reads_a_latent_once(self) -> None:
        model, window = find("gemma-4-31b").geometry, 1024 * 50 * 16 * 2 * 144
        apart, once = (cache_bytes(model, parse(kv), 4096) for kv in ("q4_0", "q4_0+latent"))
        assert apart == window + 4096 * 23_040 and once == window + 4096 * 11_520


@pytest.mark.parametrize(
    ("model", "kv", "said"),
    [
        (LLAMA, "hqq_4", "every token by itself"),
        (LLAMA, "kivi4", "every token by itself"),
        (LLAMA, "q4_0+at0:quanto_4/f16", "every token by itself"),
        (LLAMA, "q4_0+at0h1:f16/f16", "all heads of a layer alike"),
        (LLAMA, "q4_0+latent", "no latent to keep"),
        (GEMMA4_E4B, "q4_0+latent", "no latent to keep"),
        (QWEN3_NEXT, "q4_0", "full or sliding"),
        (DEEPSEEK_V3, "q4_0", "full or sliding"),
        (geometry("x", [full(8, 80)]), "q4_0", "does not divide"),
    ],
)
def test_refusals(model: Geometry, kv: str, said: str) -> None:
    with pytest.raises(NybbleError, match=said) as caught:
        MODEL.check(model, parse(kv))
    assert caught.value.seen and caught.value.allowed and caught.value.hint


class TestRealCaches:
    """Bytes that `nybble.Cache` has allocated, in models of few and narrow layers."""

    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Bytes of the right number in place of packed ones."""
        torch = pytest.importorskip("torch")
        pytest.importorskip("transformers")
        from nybble.runtime.side import Side

        def store(side: Side, x: Any) -> Any:
            shape = x.shape[:-1]
            sizes = (len(side.layout.codes), len(side.layout.scales))
            return tuple(torch.zeros(*shape, n, dtype=torch.uint8) for n in sizes)

        monkeypatch.setattr(Side, "store", store)
        monkeypatch.setattr(Side, "coded", lambda side, codes, _: codes[..., :1].float())

    def test_numbers_are_the_runtimes(self) -> None:
        from nybble.runtime import generate, layout, reference

        assert (PAGE, CHUNK) == (layout.PAGE, generate.CHUNK)
        assert (TILE, SCORES) == (reference._TILE, reference._SCORES)

    @pytest.mark.parametrize(
        ("name", "kv"),
        [("gemma3", kv) for kv in (
            "f16", "q4_0+first4", "q4_0+recent70", "q8_0/iq4_nl+first3+recent64", "q4_0+skip0",
            "int8_per_token_head", "f16/q4_0+first4",
        )] + [(name, "q8_0/q4_0") for name in ("llama", "gemma3", "gemma4", "gpt_oss")],
    )  # fmt: skip
    def test_grown_token_by_token(self, name: str, kv: str) -> None:
        model, stored = grown(name, kv, prompt=(1,), more=200, batch=2)
        for context, n_bytes in stored.items():
            assert plan(model, kv, context=context, sequences=2).of("cache") == n_bytes, context

    @pytest.mark.parametrize("name", ["llama", "gemma3", "gemma4"])
    @pytest.mark.parametrize("kv", ["q4_0", "q8_0/q4_0+first4+recent64"])
    def test_a_prompt_in_chunks(self, name: str, kv: str) -> None:
        # Behind a chunk, sliding layers still have all of it, and a spare page for a while.
        model, stored = grown(name, kv, prompt=(512, 512, 90), more=130, batch=1)
        for context, n_bytes in stored.items():
            memory = plan(model, kv, context=context)
            kept, scratch = memory.of("cache"), parts(memory, "in prefill")
            assert kept <= n_bytes <= kept + scratch, context
        last = max(stored)
        assert stored[last] == plan(model, kv, context=last).of("cache")


@pytest.mark.parametrize("kv", ["f16", "q8_0/q4_0", "q4_0+first4+recent64"])
def test_real_latents(kv: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    from nybble.runtime.cache import Cache

    torch.manual_seed(0)
    whole = transformers.Gemma4ForCausalLM(config("gemma4-latent")).eval()
    kept = Cache(whole, f"{kv}+latent")
    model = shape(whole.config)
    with torch.no_grad():
        for n, context in ((100, 100), (1, 101), (60, 161)):
            whole(torch.ones(1, n, dtype=torch.long), past_key_values=kept)
            memory = plan(model, f"{kv}+latent", context=context)
            least, scratch = memory.of("cache"), parts(memory, "in prefill")
            assert least <= kept.bytes_stored() <= least + scratch
    assert memory.of("cache") < plan(model, kv, context=context).of("cache")


def config(name: str) -> Any:
    import transformers

    tiny = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
            "pad_token_id": 0}  # fmt: skip
    slides = {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4}
    wide = {"global_head_dim": 64, "hidden_size_per_layer_input": 0}
    if name == "llama":
        return transformers.LlamaConfig(**tiny, num_hidden_layers=2)
    if name == "gemma3":
        return transformers.Gemma3TextConfig(**tiny, **slides, sliding_window=100)
    if name == "gpt_oss":
        return transformers.GptOssConfig(**tiny, **slides, sliding_window=128,
                                         num_local_experts=4, num_experts_per_tok=2)  # fmt: skip
    if name == "gemma4":  # the last two read the first two's
        return transformers.Gemma4TextConfig(**tiny, **slides, **wide, sliding_window=64,
                                             num_kv_shared_layers=2)  # fmt: skip
    return transformers.Gemma4TextConfig(
        **tiny, **slides, **wide, sliding_window=64, attention_k_eq_v=True,
        num_global_key_value_heads=1,
    )  # fmt: skip


def shape(of: Any) -> Geometry:
    from nybble.models.config_geometry import geometry_of_config

    made = geometry_of_config(of.to_dict(), "tiny")
    return replace(made, weights=None)


def grown(
    name: str, kv: str, prompt: tuple[int, ...], more: int, batch: int
) -> tuple[Geometry, dict[int, int]]:
    """Bytes by context, behind each chunk of a prompt and each token behind it."""
    import torch

    from nybble.runtime.cache import Cache

    made = config(name)
    kept, model = Cache(made, kv), shape(made)
    stored, context = {}, 0
    for n in (*prompt, *[1] * more):
        for i, layer in enumerate(model.layers):
            if layer.kind != "shared":
                k = torch.randn(batch, layer.kv_heads, n, layer.k_dim)
                kept.layers[i].update(k, k)
        context += n
        if n > 1 or context % 13 == 0 or context in (63, 64, 65, 127, 128, 129):
            stored[context] = kept.bytes_stored()
    stored[context] = kept.bytes_stored()
    return model, stored
