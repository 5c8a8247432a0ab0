"""The engine itself on tiny models: every type, rotation, tokens, refusals."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_models import write_tiny_qwen3
from nybble.engines.llamacpp.model import UBATCH, Model
from nybble.errors import EngineError
from nybble.formats import KV_TYPES, KVSetting, make, parse

OWN = [t.name for t in KV_TYPES.values() if t.ggml_id is not None]
ROTATION = "LLAMA_ATTN_ROT_DISABLE"
TEXT = "the cat of the hat sat on a mat, and that was that. "


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[Model]:
    with closing(Model(tiny_model)) as found:
        yield found


@pytest.fixture(scope="module")
def ids(model: Model) -> list[int]:
    return [model.vocabulary.bos, *model.tokenize(TEXT * 3, special=False).tolist()]


def logits_of(
    model: Model, setting: KVSetting, ids: list[int], *, rows: int = 8, n_ctx: int = 256
) -> np.ndarray:  # type: ignore[type-arg]
    """Logits of the last `rows` tokens."""
    with closing(model.context(setting, n_ctx, rows=rows, threads=1)) as lane:
        for _ in lane.prefill(ids[:-rows], 0):
            pass
        return lane.score(ids[-rows:], len(ids) - rows).copy()


class TestSettings:
    @pytest.mark.parametrize("rotation", [True, False])
    @pytest.mark.parametrize("v", OWN)
    @pytest.mark.parametrize("k", OWN)
    def test_every_pair(self, model: Model, ids: list[int], k: str, v: str, rotation: bool) -> None:
        setting = KVSetting(k, v, rotation)
        with closing(model.context(setting, 256, rows=8, threads=1)) as lane:
            (sub,) = lane.applied.subcaches
            assert (sub.kind, sub.cells, sub.layers) == ("global", 256, 2)
            assert (sub.k_type, sub.v_type) == (k, v)
            # Head size 64; only quantized sides are rotated.
            assert lane.applied.rotation_k == (64 if rotation and setting.k_type.quantized else 0)
            assert lane.applied.rotation_v == (64 if rotation and setting.v_type.quantized else 0)
            for _ in lane.prefill(ids[:-8], 0):
                pass
            logits = lane.score(ids[-8:], len(ids) - 8)
            assert logits.shape == (8, model.vocabulary.n_tokens)
            assert logits.dtype == np.float32
            assert np.isfinite(logits).all()
            assert logits.std() > 0.1

    def test_types_change_the_logits_by_their_size(self, model: Model, ids: list[int]) -> None:
        reference = logits_of(model, make("f16", "f16"), ids)
        error = {
            name: float(np.abs(logits_of(model, parse(name), ids) - reference).mean())
            for name in ("f16", "f32", "bf16", "q8_0", "q5_0", "q4_0")
        }
        # llama.cpp casts an f32 cache to f16 for its flash attention.
        assert error["f16"] == error["f32"] == 0
        assert 0 < error["bf16"] < error["q8_0"] < error["q5_0"] < error["q4_0"]

    def test_rotation_changes_quantized_caches_only(self, model: Model, ids: list[int]) -> None:
        def norot(text: str) -> bool:
            on, off = (KVSetting(*text.split("/"), rotation) for rotation in (True, False))
            return np.array_equal(logits_of(model, on, ids), logits_of(model, off, ids))

        assert norot("f16/f16") and norot("bf16/f32")
        assert not norot("q4_0/f16") and not norot("f16/q4_0")

    @pytest.mark.parametrize("before", [None, "0", "1", "rubbish"])
    def test_the_users_environment_does_not_decide(
        self, model: Model, before: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv(ROTATION, raising=False)
        if before is not None:
            monkeypatch.setenv(ROTATION, before)
        for setting, width in (("q4_0", 64), ("q4_0-norot", 0)):
            with closing(model.context(parse(setting), 256, rows=1, threads=1)) as lane:
                assert lane.applied.rotation_k == width
        assert os.environ.get(ROTATION) == before

    def test_lanes_do_not_disturb_each_other(self, model: Model, ids: list[int]) -> None:
        alone = logits_of(model, parse("q4_0"), ids)
        with (
            closing(model.context(parse("q4_0"), 256, rows=8, threads=1)) as lane,
            closing(model.context(parse("q8_0-norot"), 256, rows=8, threads=2)) as other,
        ):
            for _ in zip(lane.prefill(ids[:-8], 0), other.prefill(ids[:-8], 0), strict=True):
                pass
            other.score(ids[-8:], len(ids) - 8)
            np.testing.assert_array_equal(lane.score(ids[-8:], len(ids) - 8), alone)

    def test_deep_models(self, make_tiny: Callable[..., Path], tmp_path: Path) -> None:
        """llama.cpp logs more lines for more layers; the cache's lines must still be found."""
        deep = make_tiny(tmp_path / "deep.gguf", n_layer=120)
        with closing(Model(deep, no_alloc=True)) as found:
            for setting in ("q4_0", "f16"):
                with closing(found.context(parse(setting), 256, rows=1, threads=1)) as lane:
                    assert lane.applied.subcaches[0].layers == 120

    def test_sliding_layers(self, tiny_sliding: Path) -> None:
        with closing(Model(tiny_sliding)) as found:
            lane = found.context(parse("q8_0/q4_0"), 1024, rows=8, threads=1)
            with closing(lane):
                subs = lane.applied.subcaches
                assert [(s.kind, s.layers, s.cells) for s in subs] == [
                    ("global", 2, 1024), ("sliding", 2, 768),
                ]  # fmt: skip
                ids = list(range(4, 260)) * 4
                for _ in lane.prefill(ids[:1000], 0):
                    pass
                assert np.isfinite(lane.score(ids[1000:1008], 1000)).all()


class TestDecode:
    def test_prefill_is_cut_into_micro_batches(self, model: Model) -> None:
        with closing(model.context(make("f16", "f16"), 2048, rows=1, threads=1)) as lane:
            ids = [5] * (2 * UBATCH + 7)
            assert list(lane.prefill(ids, 0)) == [UBATCH, UBATCH, 7]
            assert list(lane.prefill([], len(ids))) == []

    def test_clear_forgets_everything(self, model: Model, ids: list[int]) -> None:
        with closing(model.context(parse("q4_0"), 256, rows=8, threads=1)) as lane:
            first = lane.score(ids[:8], 0).copy()
            lane.score(ids[8:16], 8)
            lane.clear()
            np.testing.assert_array_equal(lane.score(ids[:8], 0), first)

    def test_blocks_and_single_tokens_agree(self, model: Model, ids: list[int]) -> None:
        setting = parse("q8_0/q4_0")
        block = logits_of(model, setting, ids)
        with closing(model.context(setting, 256, rows=1, threads=1)) as lane:
            single = [lane.score([t], i)[0].copy() for i, t in enumerate(ids)]
        np.testing.assert_allclose(np.array(single[-8:]), block, atol=0.02)

    def test_every_position_reads_the_quantized_cache(self, model: Model, ids: list[int]) -> None:
        """Even within one batch: a score without prefill shows the loss as well."""
        with (
            closing(model.context(make("f16", "f16"), 256, rows=16, threads=1)) as exact,
            closing(model.context(parse("q4_0"), 256, rows=16, threads=1)) as lane,
        ):
            gap = np.abs(lane.score(ids[:16], 0) - exact.score(ids[:16], 0)).max(axis=1)
        assert (gap > 1e-3).all()

    def test_a_full_cache_is_an_error(self, model: Model) -> None:
        with closing(model.context(parse("q8_0"), 256, rows=1, threads=1)) as lane:
            for _ in lane.prefill([5] * 256, 0):
                pass
            with pytest.raises(EngineError, match="llama_decode failed at position 256") as caught:
                lane.score([5], 256)
            assert "code 1" in str(caught.value.seen)

    def test_logits_are_a_view_of_one_buffer(self, model: Model, ids: list[int]) -> None:
        with closing(model.context(make("f16", "f16"), 256, rows=4, threads=1)) as lane:
            a = lane.score(ids[:4], 0)
            assert not a.flags.owndata
            before = a.copy()
            b = lane.score(ids[4:8], 4)
            assert not np.array_equal(before, b)


class TestTokens:
    def text(self, model: Model, ids: list[int]) -> str:
        """The byte vocabulary of tests/conftest.py read backwards."""
        words = {259: b" the", 260: b" of", 261: b" ", 262: b"e", 263: b"t", 264: b"a"}
        raw = b"".join(words.get(i) or bytes([i - 3]) for i in ids)
        return raw.decode("utf-8")

    @settings(max_examples=200)
    @given(st.text(alphabet=st.characters(exclude_characters="\0", codec="utf-8"), max_size=60))
    def test_round_trip(self, model: Model, text: str) -> None:
        ids = model.tokenize(text, special=False)
        assert ids.dtype == np.int32
        assert all(3 <= i < model.vocabulary.n_tokens for i in ids)
        got = self.text(model, ids.tolist()).replace("\u2581", " ")
        # SentencePiece puts a space in front.
        assert got == (" " + text.replace("\u2581", " ") if text else "")

    def test_specials_only_where_asked(self, model: Model) -> None:
        text = "a<s>b</s>"
        assert not {1, 2} & set(model.tokenize(text, special=False).tolist())
        assert {1, 2} <= set(model.tokenize(text, special=True).tolist())

    def test_no_bos_is_added(self, model: Model) -> None:
        assert model.vocabulary.add_bos
        assert model.tokenize("abc", special=True)[0] != model.vocabulary.bos

    def test_long_text(self, model: Model) -> None:
        assert len(model.tokenize("x" * 60_000, special=False)) >= 60_000

    def test_vocabulary(self, model: Model) -> None:
        v = model.vocabulary
        assert (v.n_tokens, v.bos, v.eos) == (265, 1, 2)
        assert (v.bos_text, v.eos_text) == ("<s>", "</s>")
        assert model.context_length == 4096


class TestRefusals:
    @pytest.mark.parametrize("content", [None, b"", b"no GGUF at all", b"GGUF" + b"\xff" * 40])
    def test_not_a_model(self, tmp_path: Path, content: bytes | None) -> None:
        path = tmp_path / "x.gguf"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(EngineError, match="cannot load this model") as caught:
            Model(path)
        assert str(path) in str(caught.value.seen)
        assert "no message" not in str(caught.value.seen)

    def test_cut_off(self, tiny_model: Path, tmp_path: Path) -> None:
        path = tmp_path / "half.gguf"
        path.write_bytes(tiny_model.read_bytes()[:-50_000])
        with pytest.raises(EngineError, match="cannot load this model"):
            Model(path)

    def test_a_type_the_head_size_does_not_allow(
        self, make_tiny: Callable[..., Path], tmp_path: Path
    ) -> None:
        with closing(Model(make_tiny(tmp_path / "odd.gguf", head_dim=80))) as odd:
            with pytest.raises(EngineError, match="refuses a context of 256 tokens") as caught:
                odd.context(parse("q8_0/f16"), 256, rows=1, threads=1)
            assert "block size 32 does not divide n_embd_head_k=80" in str(caught.value.seen)
            with closing(odd.context(parse("f16/bf16"), 256, rows=1, threads=1)) as lane:
                assert np.isfinite(lane.score([5], 0)).all()

    def test_an_engine_that_ignores_the_setting(
        self, model: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What the log says counts, not what was asked for."""
        monkeypatch.setattr(KVSetting, "v_type", KV_TYPES["f16"])
        with pytest.raises(EngineError, match="did not apply the KV setting") as caught:
            model.context(parse("q8_0/q4_0"), 256, rows=1, threads=1)
        assert caught.value.seen == "q8_0/f16 in the global layers"

    def test_closing_twice(self, tiny_model: Path) -> None:
        found = Model(tiny_model)
        lane = found.context(parse("q8_0"), 256, rows=1, threads=1)
        lane.close()
        lane.close()
        found.close()
        found.close()


def test_a_vocabulary_that_spells_a_space_in_three_tokens(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny_qwen3(path)  # bytes only, and SentencePiece's space is U+2581
    tokens = Model(path).tokenize("a b c d e f g h", special=False)
    assert len(tokens) == 8 + 3 * 8  # one more space in front
