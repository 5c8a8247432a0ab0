"""transformers' cache: equal to what its real cache objects hold, in tiny random models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any

import pytest
from plan_shapes import DEEPSEEK_V3, GEMMA3, GEMMA4, GPT_OSS, LLAMA, full, geometry, sliding

from nybble.errors import NybbleError
from nybble.formats.setting import parse
from nybble.models.geometry import Geometry, Layer, State
from nybble.planning.memory.base import Load, Memory
from nybble.planning.memory.transformers import RESIDUAL, Transformers

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

MODEL = Transformers()
WINDOW = 8
TINY = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0}  # fmt: skip


def plan(model: Geometry, kv: str, **load: Any) -> Memory:
    chosen = parse(kv)
    MODEL.check(model, chosen)
    return MODEL.memory(model, chosen, Load(**load))


def llama() -> Any:
    config = transformers.LlamaConfig(**TINY, num_hidden_layers=3)
    return transformers.LlamaForCausalLM(config)


def gemma3() -> Any:
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    config = transformers.Gemma3TextConfig(
        **TINY, num_hidden_layers=3, layer_types=kinds, sliding_window=WINDOW
    )
    return transformers.Gemma3ForCausalLM(config)


def gemma4() -> Any:
    """Six layers, of which the last three read a cache of the first three; wide global heads."""
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    config = transformers.Gemma4TextConfig(
        **TINY, num_hidden_layers=6, layer_types=kinds, sliding_window=WINDOW, global_head_dim=32,
        num_global_key_value_heads=1, num_kv_shared_layers=3, hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=64,
    )  # fmt: skip
    return transformers.Gemma4ForCausalLM(config)


def deepseek() -> Any:
    config = transformers.DeepseekV3Config(
        **TINY | {"num_key_value_heads": 4, "head_dim": 8}, num_hidden_layers=2,
        kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
        first_k_dense_replace=2, n_routed_experts=4, n_group=1, topk_group=1,
    )  # fmt: skip
    return transformers.DeepseekV3ForCausalLM(config)


TWO, WIDE = full(2, 16), full(2, 32)
NARROW = sliding(2, 16, WINDOW)
MODELS: dict[str, tuple[Callable[[], Any], Geometry]] = {
    "llama": (llama, geometry("llama", [TWO] * 3)),
    "gemma3": (gemma3, geometry("gemma3_text", [NARROW, NARROW, TWO])),
    "gemma4": (gemma4, geometry("gemma4_text", [NARROW, NARROW, WIDE] + [
        Layer("shared", 4, source=1), Layer("shared", 4, source=1), Layer("shared", 4, source=2)])),
    "deepseek": (deepseek, geometry("deepseek_v3", [Layer("latent", 4, 1, 24, 0, rope_dim=8)] * 2)),
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny tensors: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def built(name: str) -> Any:
    torch.manual_seed(0)
    return MODELS[name][0]().to(torch.bfloat16).eval()


def held(cache_object: Any) -> int:
    """Bytes of all storages behind the cache's tensors, each once."""
    found = {}
    for layer in cache_object.layers:
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None)):
            if isinstance(tensor, torch.Tensor) and tensor.numel():
                storage = tensor.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def run(name: str, prompt: int, more: int, batch: int) -> int:
    """Bytes held after a prompt and some tokens more."""
    model = built(name)
    kept = transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.ones(batch, prompt, dtype=torch.long), past_key_values=kept)
        for _ in range(more):
            model(torch.ones(batch, 1, dtype=torch.long), past_key_values=kept)
    return held(kept)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("context", [2, WINDOW - 1, WINDOW, WINDOW + 1, 40])
@pytest.mark.parametrize("name", MODELS)
def test_cache_while_decoding(name: str, context: int, batch: int) -> None:
    memory = plan(MODELS[name][1], "f16", context=context, sequences=batch)
    assert memory.of("cache") == run(name, context - 1, 1, batch)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("context", [WINDOW - 1, WINDOW, WINDOW + 1, 40])
@pytest.mark.parametrize("name", ["gemma3", "gemma4"])
def test_a_prompt_stays_whole_until_the_next_token(name: str, context: int, batch: int) -> None:
    # DynamicSlidingWindowLayer.update keeps a view of the last window - 1 tokens: the storage is
    # that of all of them.
    memory = plan(MODELS[name][1], "f16", context=context, sequences=batch)
    behind = [p.n_bytes for p in memory.parts if "before the window" in p.name]
    assert memory.of("cache") + sum(behind) == run(name, context, 0, batch)
    assert bool(behind) == (context > WINDOW)


def test_the_layers_of_the_tiny_models_are_what_the_geometry_says() -> None:
    for name, (_, model) in MODELS.items():
        kept = transformers.DynamicCache(config=built(name).config)
        kinds = [type(layer).__name__ for layer in kept.layers]
        named = {"global": "DynamicLayer", "latent": "DynamicLayer", "shared": "DummyLayer",
                 "sliding": "DynamicSlidingWindowLayer"}  # fmt: skip
        assert kinds == [named[layer.kind] for layer in model.layers]


def test_states_are_about_as_large() -> None:
    # Qwen3-Next keeps all 4 columns of the convolution's kernel, the plan counts past inputs: 3.
    config = transformers.Qwen3NextConfig(
        **TINY, num_hidden_layers=2, linear_num_key_heads=2, linear_num_value_heads=4,
        linear_key_head_dim=16, linear_value_head_dim=16, num_experts=0, decoder_sparse_step=1,
        layer_types=["linear_attention", "full_attention"], mlp_only_layers=[0, 1],
    )  # fmt: skip
    model = transformers.Qwen3NextForCausalLM(config).to(torch.bfloat16).eval()
    kept = transformers.DynamicCache(config=config)
    with torch.no_grad():
        model(torch.ones(4, 12, dtype=torch.long), past_key_values=kept)
    first = kept.layers[0]
    sizes = {
        name: sum(t.numel() * t.element_size() for t in getattr(first, name).values())
        for name in ("conv_states", "recurrent_states")
    }
    # 2 x 2 x 16 keys and 4 x 16 values pass the convolution; states of 4 heads of 16 x 16.
    state = State((2 * 2 * 16 + 4 * 16) * 3, 4 * 16 * 16)
    memory = plan(geometry("x", [Layer("recurrent", state=state), TWO]), "f16", context=12,
                  sequences=4)  # fmt: skip
    part = next(p for p in memory.parts if p.use == "state")
    assert part.estimated
    assert sizes["recurrent_states"] == 4 * state.recurrent * 4
    assert part.n_bytes == pytest.approx(sum(sizes.values()), rel=0.1)


class Counting(transformers.cache_utils.QuantizedLayer):  # type: ignore[misc]
    """The real layer, with a stand-in for the packing: tensors stay as they are."""

    def _quantize(self, tensor: Any, axis: int) -> Any:
        return tensor

    def _dequantize(self, tensor: Any) -> Any:
        return tensor


@pytest.mark.parametrize(("prompt", "more"), [(10, 0), (10, 127), (10, 128), (300, 5), (1, 400)])
def test_what_stays_raw(prompt: int, more: int) -> None:
    layer = Counting()
    for n in (prompt, *([1] * more)):
        layer.update(torch.ones(1, 2, n, 64), torch.ones(1, 2, n, 64))
    raw = layer.keys.shape[-2] if layer.keys.dim() == 4 else 0
    stored = layer._quantized_keys.shape[-2]
    assert raw + stored == prompt + more
    assert raw <= RESIDUAL - 1
    memory = plan(geometry("x", [full(2, 64)]), "hqq_4/hqq_4", context=prompt + more)
    # 64 x 4 bits and 4 B of scale and zero point; 128 B raw: K and V of 2 heads.
    assert memory.of("cache") + sum(p.n_bytes for p in memory.parts if "raw" in p.name) >= (
        2 * 2 * (36 * stored + 128 * raw)
    )
    assert memory.of("cache") == 2 * 2 * 36 * (prompt + more)


@pytest.mark.parametrize(
    ("kv", "row"),
    # formats/hqq.py and formats/quanto.py: codes of 128 elements, 2 groups of 64 with 4 B each.
    [("hqq_8", 136), ("hqq_4", 72), ("quanto_4", 72), ("quanto_2", 40)],
)
def test_quantized_by_hand(kv: str, row: int) -> None:
    memory = plan(LLAMA, f"{kv}/{kv}", context=8192, sequences=4)
    assert memory.of("cache") == 4 * 8192 * 32 * 8 * 2 * row
    assert sum(p.n_bytes for p in memory.parts if "raw" in p.name) == 4 * 127 * 131072


@pytest.mark.skipif(not find_spec("hqq"), reason="pip install hqq")
@pytest.mark.parametrize("bits", [4, 8])
def test_hqq_itself(bits: int) -> None:
    layer = transformers.cache_utils.HQQQuantizedLayer(nbits=bits, axis_key=1, axis_value=1)
    x = torch.randn(1, 2, 256, 128, dtype=torch.float16)
    layer.update(x, x)
    codes, meta = layer._quantized_keys
    n_bytes = sum(t.numel() * t.element_size() for t in (codes, meta["scale"], meta["zero"]))
    memory = plan(geometry("x", [full(2, 128)]), f"hqq_{bits}/hqq_{bits}", context=256)
    assert memory.of("cache") == 2 * n_bytes


def test_prompts_in_one_pass_hold_much() -> None:
    # Gemma 4 31B behind 131,072 tokens: 50 sliding layers x 16 heads x 512 x 2 B = 819,200 B a
    # token are freed one layer at a time with the next token.
    memory = plan(GEMMA4, "f16", context=131072)
    assert memory.of("cache") == 131072 * 81920 + 1024 * 819200
    behind = sum(p.n_bytes for p in memory.parts if "before the window" in p.name)
    assert behind == (131072 - 1024) * 819200


@pytest.mark.parametrize(
    ("model", "kv", "said"),
    [
        (LLAMA, "q8_0", "no such KV setting"),
        (LLAMA, "hqq_4/hqq_8", "no such KV setting"),
        (LLAMA, "bf16", "no such KV setting"),
        (GEMMA3, "hqq_4", "full attention only"),
        (GPT_OSS, "quanto_4", "full attention only"),
        (DEEPSEEK_V3, "hqq_8", "full attention only"),
        (geometry("x", [full(8, 80)]), "hqq_4", "blocks of 64"),
    ],
)
def test_refusals(model: Geometry, kv: str, said: str) -> None:
    with pytest.raises(NybbleError, match=said) as caught:
        MODEL.check(model, parse(kv))
    assert caught.value.seen
    assert caught.value.allowed


def test_settings_are_accepted() -> None:
    for name in MODEL.settings:
        MODEL.check(LLAMA, parse(name))
    assert transformers.__version__.startswith(MODEL.version.rpartition(".")[0])
