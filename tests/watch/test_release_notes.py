"""Sentences of release notes that concern KV caches."""

from __future__ import annotations

import pytest
from feed_samples import NOTES
from hypothesis import given
from hypothesis import strategies as st

from nybble.watch.notes import MAX_LINES, TOPICS, concerning, match, ranked, sentences
from nybble.watch.parse import Release


def _topics(text: str) -> set[str]:
    return set(match(text)[0])


class TestSentences:
    def test_blocks_sentences_and_headings(self) -> None:
        found = [(s.heading, s.text) for s in sentences(NOTES)]
        assert found[:3] == [
            ("", "Highlights"),
            ("Highlights", "KV cache: nvfp4 now runs on SM120 (#47684, docs)."),
            ("Highlights", "It is fast."),
        ]
        assert ("Models", "Gemma 4 QAT checkpoints load.") in found

    def test_a_heading_that_is_not_closed_ends_with_the_next_paragraph(self) -> None:
        found = list(sentences("<h2>One<p>two</p><p>three</p>"))
        assert [s.heading for s in found] == ["", "One", "One"]
        assert [s.text for s in found] == ["One", "two", "three"]

    def test_plain_text(self) -> None:
        text = "# Changes\n\n- KV cache in q4_0\n- other\n\nOne line\ngoes on, e.g. here."
        assert [s.text for s in sentences(text)] == [
            "Changes", "KV cache in q4_0", "other", "One line goes on, e.g. here."]  # fmt: skip

    def test_scripts_comments_and_escapes(self) -> None:
        html = "<p>a<script>KV cache dtype</script>b &lt;b&gt; \x1b[31m<!-- c -->\u202ed</p>"
        assert [s.text for s in sentences(html)] == ["ab <b> [31md"]

    @given(st.text(alphabet="<>/!-pliscrt&#;x0 .KVcahe\n", max_size=300))
    def test_any_text(self, text: str) -> None:
        for found in sentences(text):
            assert found.text and found.text.isprintable() and len(found.text) <= 600

    @pytest.mark.timeout(20)  # a pattern that goes back and forth would take hours
    @pytest.mark.parametrize("piece", ["<", "<!--", "<p ", "</", "<a <", "&#", "kv cache ", "-k "])
    def test_time_is_linear(self, piece: str) -> None:
        assert concerning(Release("1", notes=piece * (200_000 // len(piece)))) is not None


class TestTopics:
    @pytest.mark.parametrize(
        ("text", "topic"),
        [
            ("Support FP8 KV cache on Hopper", "KV type"),
            ("Quantized key-value caches in 4-bit", "KV type"),
            ("kv cache dtype is validated", "KV type"),
            ("llama-server: accept q5_1 for the KV cache", "KV type"),
            ("--kv-cache-dtype takes nvfp4", "KV flag"),
            ("`-ctk q8_0` no longer crashes", "KV flag"),
            ("rename --cache-type-k-draft", "KV flag"),
            ("OLLAMA_KV_CACHE_TYPE is read again", "KV flag"),
            ("quant_policy 42 is new", "KV flag"),
            ("KvCacheConfig has a dtype of each layer", "KV flag"),
            ("FWHT kernel for CUDA", "rotation"),
            ("fix LLAMA_ATTN_ROT_DISABLE", "rotation"),
            ("TurboQuant preset", "rotation"),
            ("loads Gemma QAT checkpoints", "QAT"),
            ("quantization-aware training", "QAT"),
            ("NVFP4 attention in FlashInfer", "FP8/FP4 attention"),
            ("FA3 with e4m3", "FP8/FP4 attention"),
            ("CUDA: flash attention for q4_0", "quantized attention"),
            ("sliding window layers keep a shorter cache", "sliding window"),
            ("iSWA cache is unified", "sliding window"),
            ("SWA checkpoints hold visible cells only (#23981)", "sliding window"),
            ("SYCL: Q4_1/Q5_0 in Flash-Attention (#23812)", "quantized attention"),
            ("quantized KV cache in tensor parallel mode", "KV type"),
            ("KV cache is freed earlier", "KV cache"),
        ],
    )
    def test_found(self, text: str, topic: str) -> None:
        assert topic in _topics(text)

    @pytest.mark.parametrize(
        "text",
        ["Rotary embedding clean-up", "typed configuration", "Bump torch to 2.13", "kvpress docs",
         "log rotation", "qatar", "New model: Gemma 4", "Docker cache of layers", "INT4 weights",
         "remove the HTTP cache type hint"],
    )  # fmt: skip
    def test_not_found(self, text: str) -> None:
        assert _topics(text) == set()

    def test_every_topic_is_named_once(self) -> None:
        assert len({t.name for t in TOPICS}) == len(TOPICS)

    def test_the_words_are_kept(self) -> None:
        topics, words, score = match("Deprecate --kv-cache-dtype for the KV cache")
        assert topics == ("KV flag", "KV cache") or "KV type" in topics
        assert "--kv-cache-dtype" in words and score > 6

    @given(st.text(max_size=200))
    def test_words_stand_in_the_text(self, text: str) -> None:
        topics, words, score = match(text)
        assert bool(topics) == bool(score) == bool(words)
        assert all(word in text for word in words)


class TestRanking:
    def test_notes_of_a_release(self) -> None:
        found = concerning(Release("v0.34.0", "2026-11-20", "https://x/v", NOTES))
        assert [line.text.split(" ")[0] for line in found] == [
            "KV", "Rename", "Hadamard", "Gemma", "The"]  # fmt: skip
        assert {line.release for line in found} == {"v0.34.0"} and found[0].url == "https://x/v"
        best = ranked(list(found))
        assert best[0].topics[0] == "KV flag"
        assert [line.score for line in best] == sorted((x.score for x in found), reverse=True)

    def test_a_sentence_of_two_releases_is_shown_once_with_the_first(self) -> None:
        lines = [line for version in ("2", "1")
                 for line in concerning(Release(version, notes=NOTES))]  # fmt: skip
        best = ranked(lines)
        assert len(best) == len(lines) // 2 and {line.release for line in best} == {"2"}

    def test_many_lines_are_cut(self) -> None:
        notes = "".join(f"<li>KV cache {n}</li>" for n in range(MAX_LINES + 50))
        assert len(ranked(list(concerning(Release("1", notes=notes))))) == MAX_LINES
