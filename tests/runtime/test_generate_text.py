"""Tokens to text as they come, stop texts, and the tokenizers behind them."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from generate_models import folder, text  # noqa: E402

from nybble.cli.generate_text import ModelText  # noqa: E402
from nybble.errors import NybbleError  # noqa: E402
from nybble.models.checkpoint import resolve  # noqa: E402
from nybble.runtime.text import BytesDecoder, Decoder, IdsDecoder, Stops  # noqa: E402

WORDS = "naïve 日本 🎉 end"
PIECES = [bytes([i]) for i in range(256)]


def decoder_of(kind: str) -> Decoder:
    if kind == "bytes":
        return BytesDecoder(PIECES)
    return IdsDecoder(lambda ids: bytes(ids).decode("utf-8", "replace"), [])


class TestDecoders:
    @pytest.mark.parametrize("kind", ["bytes", "ids"])
    def test_a_character_comes_whole(self, kind: str) -> None:
        decoder = decoder_of(kind)
        shown = [decoder.add(byte) for byte in WORDS.encode()]
        assert [s for s in shown if s] == list(WORDS)
        assert decoder.end() == ""

    @pytest.mark.parametrize("kind", ["bytes", "ids"])
    def test_bytes_that_are_no_text_do_not_hold_it_back(self, kind: str) -> None:
        decoder = decoder_of(kind)
        garbage = b"\xff\xfe\x80\x80\x80\xc3" + b"after"
        shown = "".join(decoder.add(byte) for byte in garbage) + decoder.end()
        assert shown.endswith("after") and "\ufffd" in shown

    @pytest.mark.parametrize("kind", ["bytes", "ids"])
    def test_half_a_character_at_the_end_shows(self, kind: str) -> None:
        decoder = decoder_of(kind)
        assert decoder.add("é".encode()[0]) == ""
        assert decoder.end() == "\ufffd"

    def test_the_first_token_keeps_its_space(self) -> None:
        # As SentencePiece decoders do: the space in front of a text is not part of it.
        words = ["▁Once", "▁upon"]

        def decode(ids: object) -> str:
            return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")  # type: ignore[attr-defined]

        assert IdsDecoder(decode, [0]).add(1) == " upon"


class TestStops:
    @pytest.mark.parametrize("step", [1, 3, 100])
    def test_the_first_of_several_cuts(self, step: int) -> None:
        answer, stops = "one two three END four", Stops(("four", "END", "ENDING"))
        parts = [answer[i : i + step] for i in range(0, len(answer), step)]
        shown = "".join(stops.add(p) for p in parts) + stops.end()
        assert shown == "one two three " and stops.found

    def test_a_part_of_a_stop_is_held_back_and_then_shown(self) -> None:
        stops = Stops(("abc",))
        assert [stops.add(c) for c in "xabd"] == ["x", "", "", "abd"]
        assert stops.add("ab") == "" and stops.end() == "ab" and not stops.found

    def test_without_stops_nothing_is_held(self) -> None:
        assert Stops().add("text") == "text"


class TestModelText:
    def test_a_prompt_begins_as_the_model_wants(self) -> None:
        assert text().prompt("ab") == [1, *text().more("ab")]
        assert text().chat([{"role": "user", "content": "ab"}])[:2] != [1, 1]

    def test_a_turn_goes_on_from_an_answer(self) -> None:
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                 {"role": "user", "content": "c"}]  # fmt: skip
        head = text().chat(turns[:1])
        assert head + text().more("b") + text().turn("c") == text().chat(turns)

    def test_control_tokens_are_not_shown(self) -> None:
        decoder = text().decoder([1])
        assert "".join(decoder.add(i) for i in [*text().more("hi"), 2]) == "hi"

    def test_a_prompt_may_not_hold_control_tokens(self) -> None:
        assert 2 not in text().more("</s>")

    def test_half_a_surrogate_is_refused(self) -> None:
        with pytest.raises(NybbleError, match="half a character"):
            text().prompt("a\ud800b")

    def test_a_refusing_template_is_an_error(self, tmp_path: Path) -> None:
        refusing = "{{ raise_exception('no system please') }}"
        found = ModelText(resolve(folder("llama", refusing)))
        with pytest.raises(NybbleError, match="refuses") as error:
            found.chat([{"role": "system", "content": "x"}])
        assert "no system please" in str(error.value)

    def test_a_template_that_works_for_ever_is_an_error(self) -> None:
        endless = "{% for i in range(10**9) %}{{ i }}{% endfor %}"
        found = ModelText(resolve(folder("llama", endless)))
        with pytest.raises(NybbleError, match="refuses"):
            found.chat([{"role": "user", "content": "x"}])

    def test_a_base_model_has_no_turns(self) -> None:
        found = ModelText(resolve(folder("llama", None)))
        assert not found.has_template
        with pytest.raises(NybbleError, match="no chat template"):
            found.turn("x")

    def test_a_template_that_shows_no_answer_has_no_turns(self) -> None:
        found = ModelText(resolve(folder("llama", "{{ messages[-1]['content'] }}")))
        with pytest.raises(NybbleError, match="turns"):
            found.turn("x")


class TestGGUF:
    def test_ids_and_text_are_llamacpps(self, tiny_instruct: Path) -> None:
        found = ModelText(resolve(tiny_instruct))
        try:
            ids = found.prompt(WORDS)
            decoder = found.decoder(ids)
            assert ids[0] == 1 and 2 in found.ends and found.has_template
            shown = "".join(decoder.add(i) for i in ids[1:]) + decoder.end()
            assert shown.strip() == WORDS
            assert len(found.chat([{"role": "user", "content": "a"}])) > 3
        finally:
            found.close()
