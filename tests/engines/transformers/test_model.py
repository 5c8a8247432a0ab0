"""Shapes, heads and channel order of models in torch, on tiny random ones."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")

from tiny_torch import (  # noqa: E402
    KINDS,
    WINDOW,
    Tiny,
    build,
    config_of,
    difference,
    randomize,
    text,
    tiny,
)

from nybble.engines.transformers.attention import NAME, Lanes  # noqa: E402
from nybble.engines.transformers.model import FloatHead, LayerShape, TorchModel  # noqa: E402
from nybble.errors import EngineError  # noqa: E402
from nybble.formats.codec import Layer, gguf_order, layer_stores  # noqa: E402
from nybble.formats.setting import parse  # noqa: E402


class Sizes:
    """(KV heads, K size, V size, window) of every layer."""

    LOCAL, LONG = (2, 32, 32, WINDOW), (2, 32, 32, None)
    WIDE = (2, 64, 64, None)
    KINDS = {  # noqa: RUF012
        "gemma3": [LOCAL, LONG, LOCAL],
        "gemma4": [LOCAL, LOCAL, (1, 64, 64, None)] * 2,
        "gemma4-shared": [LOCAL, LOCAL, WIDE] * 2,
        "gemma2": [LOCAL, LONG],
        "llama": [WIDE, WIDE],
        "mistral": [(2, 64, 64, WINDOW)] * 2,
        "qwen3": [WIDE, WIDE],
        "gpt-oss": [LOCAL, LONG],
    }


class TestShapes:
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_layer(self, kind: str) -> None:
        owners = [0, 1, 2, 1, 1, 2] if kind == "gemma4-shared" else range(6)
        sizes = Sizes.KINDS[kind]
        right = [
            LayerShape(Layer(i, len(sizes), *size[:3]) if o == i else None, o, size[3])
            for i, (o, size) in enumerate(zip(owners, sizes, strict=False))
        ]
        model = tiny(kind).ours
        assert model.shapes == right
        assert model.layers == [s.layer for s in right if s.layer]

    @pytest.mark.parametrize("kind", KINDS)
    def test_cells(self, kind: str) -> None:
        model = tiny(kind).ours
        owned = Sizes.KINDS[kind][: len(model.layers)]
        for context in (1, WINDOW - 1, WINDOW, 100):
            right = [min(context, size[3] or context) for size in owned]
            assert model.cells(context) == right

    @pytest.mark.parametrize("n", [2, 40])
    def test_shared_layers_get_their_owners_tensors(self, n: int) -> None:
        """Ownership is told by the address of the keys, so the class must pass the very same."""
        model = tiny("gemma4-shared").ours
        seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        owner = {}

        def watch(module: Any, q: Any, k: Any, v: Any) -> None:
            seen[module.layer_idx] = (k, v)
            owner[module.layer_idx] = model.owner(module)

        model.watch(text(n), watch)
        assert owner == {0: 0, 1: 1, 2: 2, 3: 1, 4: 1, 5: 2}
        for layer, (k, v) in seen.items():
            assert k is seen[owner[layer]][0] and v is seen[owner[layer]][1]

    def test_keys_that_are_values_are_stored_twice(self) -> None:
        """attention_k_eq_v shares a projection only: after norms and RoPE they differ."""
        seen = {}
        tiny("gemma4").ours.watch(
            text(9), lambda module, q, k, v: seen.update({module.layer_idx: (k, v)})
        )
        k, v = seen[2]
        assert k.shape == v.shape and k.data_ptr() != v.data_ptr()
        assert difference(k[:, :, 1:], v[:, :, 1:]) > 0.1
        # A quarter of the channels turns; at position 0 none does, and K is the normed V.
        assert torch.allclose(
            k[0, 0, 0] / v[0, 0, 0], tiny("gemma4").whole.model.layers[2].self_attn.k_norm.weight
        )

    def test_a_shared_layer_reads_its_owners_setting(self) -> None:
        """Layers 3 and 4 read layer 1: its setting moves them, one of their own does nothing."""
        model, tokens = tiny("gemma4-shared"), text(20)
        names = ["f16", "f16+at1:q4_0/q4_0", "f16+at3.4.5:q4_0/q4_0", "f16+at1.3.4:q4_0/q4_0"]
        base, owner, reader, both = model.hidden(tokens, *names)
        assert torch.equal(reader, base)
        assert torch.equal(both, owner) and difference(owner, base) > 1e-3

    def test_no_attention_interface(self) -> None:
        """Bloom computes its own."""
        config = hf.BloomConfig(vocab_size=128, hidden_size=32, n_layer=1, n_head=2)
        with pytest.raises(EngineError, match="does not call transformers' attention interface"):
            TorchModel(hf.BloomForCausalLM(config))

    def test_layers_without_keys(self) -> None:
        """Stores are counted over the layers that have keys; indices stay the model's."""
        config = hf.Lfm2Config(
            vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=4,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128,
            layer_types=["conv", "full_attention", "conv", "conv"],
        )  # fmt: skip
        model, tokens = build(config), text(20)
        assert model.ours.layers == [Layer(1, 4, 1, 32, 32)]
        assert model.ours.cells(7) == [7]
        base, f16, drifted, skipped, last = model.hidden(
            tokens, None, "f16", "q4_0", "q4_0+skip-3", "q4_0+skip-1"
        )
        assert difference(base, model.stock_hidden(tokens)) < 1e-4 < difference(drifted, base)
        assert torch.equal(skipped, f16) and torch.equal(last, drifted)

    def test_llama4(self) -> None:
        """Chunked attention, and a base model that is not where the class says."""
        config = hf.Llama4TextConfig(
            vocab_size=128, hidden_size=64, intermediate_size=32, intermediate_size_mlp=32,
            num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
            num_local_experts=2, attention_chunk_size=WINDOW, pad_token_id=0,
        )  # fmt: skip
        model, tokens = build(config), text(40)
        base, drifted = model.hidden(tokens, None, "q4_0")
        assert difference(base, model.stock_hidden(tokens)) < 1e-4 < difference(drifted, base)
        assert difference(model.ours.logits(base), model.stock_logits(tokens)) < 1e-4

    @pytest.mark.parametrize("kind", ["gemma3", "gemma4"])
    def test_text_half_of_a_vision_model(self, kind: str) -> None:
        """What AutoModelForCausalLM makes of a whole Gemma config: the text model's shapes."""
        vision = dict(
            hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1
        )
        if kind == "gemma3":
            config = hf.Gemma3Config(
                text_config=config_of(kind), image_token_index=120, boi_token_index=121,
                eoi_token_index=122, vision_config=hf.SiglipVisionConfig(**vision, image_size=28),
            )  # fmt: skip
        else:
            config = hf.Gemma4Config(
                text_config=config_of(kind), vision_config=None, audio_config=None,
                image_token_id=120, boi_token_id=121, eoi_token_id=122,
            )  # fmt: skip
        model, tokens = build(config), text(40)
        assert [s.window for s in model.ours.shapes] == [s.window for s in tiny(kind).ours.shapes]
        assert model.ours.layers == tiny(kind).ours.layers
        base, drifted = model.hidden(tokens, None, "q4_0")
        assert difference(base, model.stock_hidden(tokens)) < 1e-4 < difference(drifted, base)
        assert difference(model.ours.logits(base), model.stock_logits(tokens)) < 1e-4
        assert model.ours.n_vocab == 128


class TestLogits:
    @pytest.mark.parametrize("n", [1, 40])
    @pytest.mark.parametrize("kind", KINDS)
    def test_as_the_class_makes_them(self, kind: str, n: int) -> None:
        """Soft caps included."""
        model, tokens = tiny(kind), text(n)
        found = model.ours.logits(model.ours.hidden(tokens, Lanes([None]))[0])
        assert found.dtype == torch.float32 and found.shape == (n, model.ours.n_vocab)
        assert difference(found, model.stock_logits(tokens)) < 1e-4
        cap = getattr(model.stock.config, "final_logit_softcapping", None)
        if cap:
            assert found.abs().max() <= cap
            plain = model.stock_hidden(tokens) @ model.stock.lm_head.weight.T
            assert plain.abs().max() > cap  # it had something to cap

    def test_of_some_positions(self) -> None:
        model = tiny("gemma2")
        hidden = model.ours.hidden(text(30), Lanes([None]))[0]
        whole = model.ours.logits(hidden)
        assert torch.allclose(model.ours.logits(hidden[[3, 17, 29]]), whole[[3, 17, 29]], atol=1e-6)

    def test_the_model_is_left_as_it_was(self) -> None:
        model, tokens = tiny("gemma4"), text(12)
        hidden = model.ours.hidden(tokens, Lanes([None]))
        model.ours.logits(hidden[0])
        assert torch.equal(model.ours.hidden(tokens, Lanes([None])), hidden)
        with pytest.raises(RuntimeError):
            model.ours.logits(hidden[0, :, :5])
        assert torch.equal(model.ours.hidden(tokens, Lanes([None])), hidden)


@pytest.fixture(scope="module", params=["gemma3", "gemma4", "llama", "mistral"])
def half(request: pytest.FixtureRequest) -> Tiny:
    """A model in bf16."""
    return build(config_of(request.param), torch.bfloat16)


class TestBf16:
    def test_hidden_is_bf16_and_logits_are_float32(self, half: Tiny) -> None:
        hidden = half.hidden(text(30), None, "q8_0")
        assert hidden.dtype == torch.bfloat16
        found = half.ours.logits(hidden[0])
        assert found.dtype == torch.float32
        right = hidden[0].double() @ half.stock.lm_head.weight.double().T
        cap = getattr(half.stock.config, "final_logit_softcapping", None)
        if cap:
            right = torch.tanh(right / cap) * cap
        assert difference(found, right) < 1e-6
        assert difference(half.stock_logits(text(30)), right) > 1e-4  # what bf16 makes of it

    def test_near_the_float32_model(self, half: Tiny) -> None:
        wide = copy.deepcopy(half.stock).float()
        with torch.inference_mode():
            right = wide.base_model(input_ids=torch.tensor([text(30)])).last_hidden_state[0]
        assert difference(half.hidden(text(30), "f32")[0], right) < 0.1
        assert difference(half.stock_hidden(text(30)), right) < 0.1

    def test_windowed_lanes(self, half: Tiny) -> None:
        """The spelled-out path gives bf16 too, and stands between stored and raw."""
        base, stored, recent = half.hidden(text(40), "f32", "q4_0", "q4_0+recent64")
        assert recent.dtype == torch.bfloat16
        assert difference(recent, base) < difference(stored, base)


class TestFloatHead:
    def test_tied_embeddings_stay_tied(self) -> None:
        model = build(config_of("gemma3"), torch.bfloat16)
        whole = model.whole
        head, embedding = whole.get_output_embeddings(), whole.get_input_embeddings()
        assert isinstance(head, FloatHead) and head.weight is embedding.weight
        assert set(whole.state_dict()) == set(model.stock.state_dict())
        whole.tie_weights()
        assert head.weight is embedding.weight is whole.get_output_embeddings().weight
        whole.to(torch.float32)
        assert head.weight is embedding.weight and head.weight.dtype == torch.float32

    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_parts_of_the_vocabulary(
        self, dtype: Any, bias: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("nybble.engines.transformers.model._VOCABULARY", 13)
        plain = torch.nn.Linear(16, 50, bias=bias).to(dtype)
        plain.requires_grad_(False)
        hidden = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
        found = FloatHead(plain)(hidden)
        right = hidden.float() @ plain.weight.float().T + (plain.bias.float() if bias else 0)
        assert found.dtype == torch.float32 and torch.allclose(found, right, atol=1e-6)

    def test_a_model_wrapped_twice(self) -> None:
        model = build(config_of("llama"), torch.bfloat16)
        again = TorchModel(model.whole)
        hidden = again.hidden(text(9), Lanes([None]))
        assert torch.equal(again.logits(hidden[0]), model.ours.logits(hidden[0]))


class TestGgufOrder:
    def permuted(self, weight: torch.Tensor, heads: int) -> torch.Tensor:
        """LlamaModel.permute of llama.cpp's conversion/llama.py, as its text reads: halves of a
        head's rows become neighbours."""
        rows = []
        size = len(weight) // heads
        for head in range(heads):
            for i in range(size // 2):
                rows += [head * size + i, head * size + size // 2 + i]
        return weight[rows]

    @pytest.mark.parametrize(
        ("kind", "interleaved"),
        [(k, k in ("llama", "mistral")) for k in KINDS],
    )
    def test_who_has_it(self, kind: str, interleaved: bool) -> None:
        assert tiny(kind).ours.gguf_order == interleaved

    @pytest.mark.parametrize("name", ["q4_0", "q8_0", "q4_0-norot", "iq4_nl", "q4_0+rot32"])
    @pytest.mark.parametrize("kind", ["llama", "mistral"])
    def test_as_if_k_rows_were_permuted(self, kind: str, name: str) -> None:
        """Keys of the GGUF's k_proj: RoPE turns neighbouring pairs, and they are stored so."""
        model = tiny(kind)
        n, tokens = 12, text(12)
        seen = {}
        inputs = {}

        def watch(module: Any, q: Any, k: Any, v: Any) -> None:
            seen[module.layer_idx] = k[0]

        first = model.whole.model.layers[0]
        hook = first.self_attn.k_proj.register_forward_pre_hook(
            lambda module, args: inputs.update(x=args[0][0])
        )
        model.ours.watch(tokens, watch)
        hook.remove()
        layer = model.ours.layers[0]
        rows = self.permuted(first.self_attn.k_proj.weight, layer.heads)
        k = (inputs["x"] @ rows.T).view(n, layer.heads, layer.k_dim).transpose(0, 1)
        angle = torch.arange(n)[:, None] * 10000.0 ** (
            -torch.arange(0, layer.k_dim, 2) / layer.k_dim
        )
        a, b = k[..., ::2], k[..., 1::2]
        turned = torch.stack(
            [a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1
        )
        turned = turned.flatten(-2)
        order = gguf_order(layer.k_dim)
        assert torch.allclose(seen[0][..., order], turned, atol=1e-5)  # the same keys, reordered
        stored = layer_stores(parse(name), layer)[0].roundtrip(seen[0][..., order])
        found, values = layer_stores(parse(name), layer, gguf=True)
        assert torch.equal(found.roundtrip(seen[0])[..., order], stored)
        plain = layer_stores(parse(name), layer)[0].roundtrip(seen[0])
        assert not torch.equal(found.roundtrip(seen[0]), plain)  # the order matters
        assert values.codecs[0][1].order is None

    def test_other_engines_types_keep_the_models_order(self) -> None:
        layer = tiny("llama").ours.layers[0]
        for name in ("exl3_4", "mlx_4", "f16"):
            assert layer_stores(parse(name), layer, gguf=True)[0].codecs[0][1].order is None

    def test_scores_are_those_of_the_permuted_model(self) -> None:
        """A model whose q and k rows are permuted and whose RoPE turns neighbours is the same one:
        float keys give the same hidden states whatever the order."""
        model, tokens = tiny("llama"), text(20)
        stores = [layer_stores(parse("f16"), x, gguf=True) for x in model.ours.layers]
        assert torch.equal(model.ours.hidden(tokens, Lanes([stores])), model.hidden(tokens, "f16"))


def test_set_attn_implementation_reaches_every_module() -> None:
    """The name that load() passes on is one transformers accepts for each kind."""
    for kind in KINDS:
        assert tiny(kind).whole.config._attn_implementation == NAME
        made = hf.AutoModelForCausalLM.from_config(config_of(kind), attn_implementation=NAME)
        found = TorchModel(randomize(made)).hidden(text(20), Lanes([None]))
        assert difference(found[0], tiny(kind).stock_hidden(text(20))) < 1e-4
