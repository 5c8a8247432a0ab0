"""The attention hook against transformers' own attention and against one written out by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_torch import KINDS, Tiny, build, config_of, difference, text, tiny  # noqa: E402
from transformers import AttentionInterface, AttentionMaskInterface  # noqa: E402
from transformers.masking_utils import sdpa_mask  # noqa: E402

from nybble.engines.transformers import attention  # noqa: E402
from nybble.engines.transformers.attention import NAME, Lanes, attend, reading  # noqa: E402
from nybble.errors import EngineError, NybbleError  # noqa: E402
from nybble.formats.codec import Layer, layer_stores  # noqa: E402
from nybble.formats.setting import parse  # noqa: E402

# Whether the key at j is raw for the query at i, as each setting's engine has it: (K, V).
Rule = Callable[[int, int], bool]
STORED: Rule = lambda i, j: False  # noqa: E731
RULES: dict[str, tuple[Rule, Rule]] = {
    "q4_0/q4_0": (STORED, STORED),
    "q8_0/q4_0": (STORED, STORED),
    "exl3_4": (STORED, STORED),
    "q4_0+recent8": (lambda i, j: i - j < 8, lambda i, j: i - j < 8),
    "q4_0+chunk8": (lambda i, j: i // 8 == j // 8, lambda i, j: i // 8 == j // 8),
    # K waits for 128 tokens; of V the last 128 before the query's own stay.
    "kivi4": (lambda i, j: i // 128 == j // 128, lambda i, j: i - j <= 128),
}
# Layers that own the keys, where not every layer its own.
OWNERS = {"gemma4-shared": (0, 1, 2, 1, 1, 2)}
NONE: Mapping[int, str] = {}


def by_hand(
    q: torch.Tensor,
    raw: tuple[torch.Tensor, torch.Tensor],
    stored: tuple[torch.Tensor, torch.Tensor],
    rules: list[tuple[Rule, Rule]],
    options: dict[str, Any],
) -> torch.Tensor:
    """One text, query by query in float64.

    q [heads, n, D]; raw and stored K and V [kv_heads, n, D]; rules of each KV head.
    """
    heads, n, _ = q.shape
    group = heads // len(rules)
    out = torch.zeros(heads, n, raw[1].shape[-1], dtype=torch.float64)
    window, softcap, sinks = (options.get(x) for x in ("sliding_window", "softcap", "s_aux"))
    for i in range(n):
        low = max(0, i - window + 1) if window else 0
        read = []  # K and V as this query gets them, a copy for every query head
        for side in range(2):
            is_raw = torch.tensor([[rule[side](i, j) for j in range(low, i + 1)] for rule in rules])
            x = torch.where(
                is_raw[..., None], raw[side][:, low : i + 1], stored[side][:, low : i + 1]
            )
            read.append(x.double().repeat_interleave(group, 0))
        scores = (read[0] * q[:, i, None].double()).sum(-1) * options["scaling"]
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        if sinks is not None:  # one more key for every head, with no value
            scores = torch.cat([scores, sinks[:, None].double()], 1)
        weights = torch.softmax(scores, 1)[:, : i + 1 - low]
        out[:, i] = (weights[..., None] * read[1]).sum(1)
    return out


@contextmanager
def checked(model: Tiny, check: Callable[..., None]) -> Iterator[None]:
    """Within it, `check` sees every call of the hook and what it returned."""

    def both(module: Any, q: Any, k: Any, v: Any, mask: Any, **options: Any) -> Any:
        out = attend(module, q, k, v, mask, **options)
        check(module, q, k, v, out[0].transpose(1, 2), options)
        return out

    AttentionInterface.register("nybble-checked", both)
    AttentionMaskInterface.register("nybble-checked", sdpa_mask)
    model.whole.set_attn_implementation("nybble-checked")
    try:
        yield
    finally:
        model.whole.set_attn_implementation(NAME)


def compare(
    kind: str, model: Tiny, names: list[str], n: int, heads_of: Mapping[int, str] = NONE
) -> None:
    """Every lane of every layer against `by_hand`; `heads_of` names other settings of heads."""
    config = model.stock.config.get_text_config()
    count = config.num_hidden_layers
    owners = OWNERS.get(kind, range(count))
    worst = {name: 0.0 for name in names}
    calls = []

    def check(module: Any, q: Any, k: Any, v: Any, out: Any, options: dict[str, Any]) -> None:
        calls.append(module.layer_idx)
        assert k.shape[0] == len(names)
        layer = Layer(owners[module.layer_idx], count, k.shape[1], k.shape[-1], v.shape[-1])
        for lane, name in enumerate(names):
            stores = layer_stores(parse(name), layer)
            raw = (k[lane], v[lane])
            stored = (stores[0].roundtrip(k[lane]), stores[1].roundtrip(v[lane]))

            plain = name.split("+at")[0]
            rules = [RULES[heads_of.get(head, plain)] for head in range(layer.heads)]
            queries = stores[0].round_queries(q[lane], layer.heads)
            right = by_hand(queries, raw, stored, rules, options)
            worst[name] = max(worst[name], difference(out[lane], right))

    tokens = text(n)
    with checked(model, check):
        seen = model.hidden(tokens, *names)
    assert calls == list(range(count))
    assert max(worst.values()) < 1e-5, worst
    assert torch.equal(seen, model.hidden(tokens, *names))  # nothing hangs on being watched


class TestAsItIs:
    """Nothing quantized: transformers' own numbers."""

    @pytest.mark.parametrize("n", [1, 7, 40])
    @pytest.mark.parametrize("kind", KINDS)
    def test_hidden(self, kind: str, n: int) -> None:
        model, tokens = tiny(kind), text(n)
        right = model.stock_hidden(tokens)
        found = model.hidden(tokens, None, "f32/f32", None)
        for lane in found:
            assert difference(lane, right) < 1e-4

    @pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("llama", "qwen3")])
    def test_the_window_is_seen(self, kind: str) -> None:
        """The test above would miss a lost window if far keys did not matter."""
        model = tiny(kind)
        wide = build(config_of(kind, sliding_window=64))
        tokens = text(40)
        assert difference(wide.stock_hidden(tokens), model.stock_hidden(tokens)) > 0.01

    @pytest.mark.parametrize("kind", KINDS)
    def test_no_lanes_at_all(self, kind: str) -> None:
        """As a plain attention function it serves the whole model."""
        model, tokens = tiny(kind), text(40)
        with torch.inference_mode():
            found = model.whole(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
        assert difference(found, model.stock_logits(tokens)) < 1e-4

    @pytest.mark.parametrize("kind", ["gemma2", "gpt-oss", "llama"])
    def test_padded_rows(self, kind: str) -> None:
        """Without lanes, rows may have masks of their own."""
        model = tiny(kind)
        ids = torch.tensor([text(20), text(20, seed=2)])
        mask = torch.ones_like(ids)
        mask[1, :12] = 0  # as many queries see nothing at all
        with torch.inference_mode():
            found, right = (
                m(input_ids=ids, attention_mask=mask) for m in (model.whole, model.stock)
            )
        assert difference(found.logits[0], right.logits[0]) < 1e-4
        assert difference(found.logits[1, 12:], right.logits[1, 12:]) < 1e-4

    def test_lanes_must_match_the_batch(self) -> None:
        model = tiny("llama")
        with reading(lanes=model.lanes(None, None)), pytest.raises(ValueError, match="2 lanes"):
            model.whole(input_ids=torch.tensor([text(4)]), use_cache=False)

    def test_state_ends_with_the_block(self) -> None:
        model, tokens = tiny("llama"), text(12)
        before = model.hidden(tokens, None)
        with pytest.raises(RuntimeError), reading(lanes=model.lanes("q4_0")):
            raise RuntimeError
        with torch.inference_mode():
            after = model.whole.base_model(input_ids=torch.tensor([tokens]), use_cache=False)
        assert torch.equal(after.last_hidden_state, before)


class TestByHand:
    """Quantized lanes against the loop, layer by layer on the same queries, keys and values."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_settings(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(attention, "_QUERIES", 16)  # several parts in 30 tokens
        compare(kind, tiny(kind), [name for name in RULES if name != "kivi4"], 30)

    @pytest.mark.parametrize("kind", ["llama", "gpt-oss", "gemma2"])
    def test_kivi(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(attention, "_QUERIES", 64)
        compare(kind, tiny(kind), ["kivi4"], 140)

    def test_heads_with_rules_of_their_own(self) -> None:
        """A head's own type brings its own read rule, beside stored or windowed heads."""
        compare("llama", tiny("llama"), ["q4_0/q4_0+at0-1h1:kivi_k4/kivi_v4"], 140, {1: "kivi4"})
        # +recent is around every type of the setting, so it overrides the type's own rule.
        name = "q4_0+recent8+at0-1h1:quanto_4/quanto_4"
        compare("llama", tiny("llama"), [name], 140, {1: "q4_0+recent8"})

    def test_parts_of_queries_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, tokens = tiny("gemma3"), text(40)
        whole = model.hidden(tokens, "q4_0+recent8")
        for size in (1, 7, 40):
            monkeypatch.setattr(attention, "_QUERIES", size)
            assert difference(model.hidden(tokens, "q4_0+recent8"), whole) < 1e-3


class TestLanes:
    @pytest.mark.parametrize("kind", KINDS)
    def test_equal_lanes_are_equal_exactly(self, kind: str) -> None:
        found = tiny(kind).hidden(text(37), "f16", "q4_0", "f16", "q4_0")
        assert torch.equal(found[0], found[2])
        assert torch.equal(found[1], found[3])
        assert not torch.equal(found[0], found[1])

    @pytest.mark.parametrize("kind", KINDS)
    def test_neighbours_do_not_leak(self, kind: str) -> None:
        """Batches of one shape, so matrix products round alike: not a bit may differ."""
        model, tokens = tiny(kind), text(37)
        names = ["f16", "q4_0", "q8_0", "q4_0+recent8"]
        mixed = model.hidden(tokens, *names)
        for i, name in enumerate(names):
            found = model.hidden(tokens, *[name] * len(names))[i]
            if kind == "gpt-oss":  # how many tokens an expert gets depends on the neighbours
                assert difference(found, mixed[i]) < difference(mixed[1], mixed[0]) / 20
            else:
                assert torch.equal(found, mixed[i])

    @pytest.mark.parametrize("kind", KINDS)
    def test_alone_as_beside_others(self, kind: str) -> None:
        """Another batch size rounds otherwise, which may move a code: far below the drift."""
        model, tokens = tiny(kind), text(37)
        names = ["f16", "q8_0", "q4_0"]
        mixed = model.hidden(tokens, *names)
        drift = difference(mixed[2], mixed[0])
        for i, name in enumerate(names):
            assert difference(model.hidden(tokens, name)[0], mixed[i]) < drift / 20
        assert difference(model.hidden(tokens, "f16")[0], mixed[0]) < 1e-4

    def test_the_cache_is_read(self) -> None:
        """Coarser types drift more, in every kind of model."""
        for kind in KINDS:
            base, *rest = tiny(kind).hidden(text(40), "f32", "f16", "q8_0", "q4_0")
            drift = [difference(lane, base) for lane in rest]
            assert drift == sorted(drift) and drift[0] > 0, (kind, drift)


class TestReadRules:
    def test_a_window_longer_than_the_text_leaves_it_raw(self) -> None:
        model, tokens = tiny("llama"), text(30)
        for name in ("q4_0+recent64", "q4_0+chunk64", "kivi4"):
            assert difference(model.hidden(tokens, name)[0], model.stock_hidden(tokens)) < 1e-4

    def test_decode_reads_chunks_as_stored(self) -> None:
        model, tokens = tiny("llama"), text(30)
        decode = [layer_stores(parse("q4_0+chunk64"), x, decode=True) for x in model.ours.layers]
        found = model.ours.hidden(tokens, Lanes([decode]))
        assert torch.equal(found, model.hidden(tokens, "q4_0"))

    def test_first_tokens_are_f16(self) -> None:
        """With every token protected, the cache is f16."""
        model, tokens = tiny("gemma3"), text(20)
        found = model.hidden(tokens, "q4_0+first20", "f16", "q4_0+first4", "q4_0")
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[2], found[3]) and not torch.equal(found[2], found[1])
        assert torch.equal(found[2][:4], found[1][:4])

    def test_the_future_is_not_read(self) -> None:
        """A later token changes nothing before it, groups of 32 tokens included."""
        for name in ("q4_0", "q4_0+recent8", "q4_0+chunk8", "kivi4", "quanto_4"):
            tokens = text(150)
            other = tokens[:140] + text(10, seed=2)
            model = tiny("qwen3")
            a, b = model.hidden(tokens, name), model.hidden(other, name)
            assert torch.equal(a[:, :140], b[:, :140]), name
            assert not torch.equal(a[:, 140:], b[:, 140:])


class TestOverrides:
    """`+skip` and `+at` reach one layer or head, and nothing else."""

    def stored_heads(self, model: Tiny, name: str) -> set[tuple[int, int, str]]:
        """(layer, KV head, side) that the hook reads other than they came."""
        found = set()
        stores = model.stores(name)

        def watch(module: Any, q: Any, k: Any, v: Any) -> None:
            slot = model.ours._slot(module)
            for side, x, store in zip("KV", (k, v), stores[slot], strict=True):
                changed = (store.roundtrip(x[0]) - x[0]).abs().amax((1, 2)) > 1e-2
                found.update(
                    (module.layer_idx, h, side) for h in changed.nonzero().flatten().tolist()
                )

        model.ours.watch(text(20), watch)
        return found

    ALL = {(layer, h, s) for layer in range(3) for h in range(2) for s in "KV"}

    @pytest.mark.parametrize(
        ("name", "changed"),
        [
            ("q4_0", ALL),
            ("q4_0+skip0", {c for c in ALL if c[0] != 0}),
            ("q4_0+skip0.-1", {c for c in ALL if c[0] == 1}),
            ("q4_0+skip-3--2", {c for c in ALL if c[0] == 2}),
            ("f16+at1:q4_0/q4_0", {c for c in ALL if c[0] == 1}),
            ("f16+at-1:f16/q4_0", {c for c in ALL if c[0] == 2 and c[2] == "V"}),
            ("f16+at1h0:q4_0/q4_0", {c for c in ALL if c[:2] == (1, 0)}),
            ("f16+at1.2h1:q4_0/f16", {c for c in ALL if c[0] > 0 and c[1:] == (1, "K")}),
            ("q4_0+at0-2h1:f16/f16", {c for c in ALL if c[1] == 0}),
            ("f16+at1h0:q4_0/q4_0+skip1", set()),
            ("f16+at1h0:q4_0/q4_0+at1:f16/f16", set()),
            ("f16+at1:q4_0/q4_0+at1h0:f16/f16", {c for c in ALL if c[:2] == (1, 1)}),
        ],
    )
    def test_what_is_stored(self, name: str, changed: set[tuple[int, int, str]]) -> None:
        assert self.stored_heads(tiny("gemma3"), name) == changed

    def test_a_head_alone_moves_only_its_queries(self) -> None:
        """Query heads 2 and 3 read KV head 1: the first layer's output changes in them only."""
        model = tiny("qwen3")
        outs: dict[str, torch.Tensor] = {}
        for name in ("f16", "f16+at0h1:q4_0/q4_0"):

            def keep(
                module: Any, q: Any, k: Any, v: Any, out: Any, _: Any, name: str = name
            ) -> None:
                if module.layer_idx == 0:
                    outs[name] = out

            with checked(model, keep):
                model.hidden(text(20), name)
        a, b = outs.values()
        assert (a - b).abs().amax((0, 2, 3)).gt(1e-4).tolist() == [False, False, True, True]

    @pytest.mark.parametrize("head", [2, 7])
    def test_no_such_head(self, head: int) -> None:
        with pytest.raises(NybbleError, match="no such KV head") as caught:
            tiny("gemma3").stores(f"f16+at1h{head}:q4_0/q4_0")
        assert caught.value.allowed == "0 to 1" and f"head {head}" in str(caught.value.seen)


class TestUnknown:
    def test_a_tensor_that_changes_scores_is_refused(self) -> None:
        model = tiny("llama")
        module = model.whole.model.layers[0].self_attn
        x = torch.zeros(1, 4, 3, 32)
        with pytest.raises(EngineError, match="does not know") as caught:
            attend(module, x, x, x, None, scaling=1.0, position_bias=torch.zeros(3, 3))
        assert caught.value.seen == "LlamaAttention passes position_bias"
        attend(module, x, x, x, None, position_bias=None, position_ids=torch.arange(3)[None])

    @pytest.mark.parametrize("given", [None, 0.5])
    def test_scaling(self, given: float | None) -> None:
        """None means 1 / sqrt(D)."""
        q, k, v = torch.randn(3, 1, 2, 5, 16, generator=torch.Generator().manual_seed(3))
        module = tiny("llama").whole.model.layers[0].self_attn
        found = attend(module, q, k, v, None, scaling=given)[0]
        scale = 0.25 if given is None else given
        right = by_hand(
            q[0], (k[0], v[0]), (k[0], v[0]), [(STORED, STORED)] * 2, {"scaling": scale}
        )
        assert difference(found[0].transpose(0, 1), right) < 1e-5
