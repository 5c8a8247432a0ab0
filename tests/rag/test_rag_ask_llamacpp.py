"""Asking llama.cpp's server with a tiny random model: what is kept in files, and what is refused.

What the model says means nothing; that it says the same from a file does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from rag_ask_doubles import SmallIndex, small_index

from nybble.cli.rag_server import started
from nybble.engines.llamacpp.slotfile import parse_slot
from nybble.errors import NybbleError
from nybble.rag.answers import Answer, Event, Options, Server
from nybble.rag.ask import ask, connect
from nybble.rag.llamacpp import LlamaCppAnswers

OVER = Options(over=("docs/tides.md",), answer_tokens=12)


@pytest.fixture(scope="module")
def server(tiny_instruct: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One q8_0/q4_0 server of 2,048 tokens, which are bytes of this model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NYBBLE_CACHE", str(tmp_path_factory.mktemp("serving")))
        slots = tmp_path_factory.mktemp("index") / "prefixes"
        said: list[str] = []
        with started(str(tiny_instruct), "q8_0/q4_0", 2048, slots, said.append) as found:
            assert any("2,048 tokens" in line for line in said)
            yield found


@pytest.fixture
def index(tmp_path: Path) -> SmallIndex:
    return small_index(tmp_path)


@pytest.fixture(autouse=True)
def _empty(server: Server) -> None:
    assert server.slots is not None
    for path in server.slots.glob("*.*"):
        path.unlink()


def files(server: Server) -> list[Path]:
    assert server.slots is not None
    return sorted(server.slots.glob("*.slot"))


def test_the_second_question_reads_the_first_ones_file(server: Server, index: SmallIndex) -> None:
    first = ask(index, "When is high water?", server, OVER)
    assert first.prefix is not None and first.prefix.state == "made" and first.prefix.prefill
    (file,) = files(server)
    saved = parse_slot(file.read_bytes())
    assert saved.types == {("q8_0", "q4_0")} and len(saved.tokens) == first.prefix.tokens
    assert first.prefix.file_bytes == file.stat().st_size
    assert first.prefix.cache_bytes <= file.stat().st_size < 1.2 * first.prefix.cache_bytes
    again = ask(index, "When is high water?", server, OVER)
    other = ask(index, "Which day?", server, OVER)
    for answer in (again, other):
        assert answer.prefix is not None and answer.prefix.state == "read"
        assert answer.prefix.reused == answer.prefix.tokens == first.prefix.tokens
        assert answer.prefix.prefill == first.prefix.prefill
        assert answer.usage.cached == answer.prefix.tokens
    assert again.text == first.text and len(files(server)) == 1
    assert "read from a file" in again.prefix.told() and "prefill took" in again.prefix.told()


def test_the_file_outlives_the_slot_and_the_last_question_is_known(
    server: Server, index: SmallIndex
) -> None:
    first = ask(index, "When is high water?", server, Options(k=2, answer_tokens=12))
    plain = ask(
        index, "something about pilots", server, Options(k=1, answer_tokens=4, prefix=False)
    )
    assert plain.prefix is not None and plain.prefix.state == "off" and plain.usage.cached == 0
    again = ask(index, "When is high water?", server, Options(same=True, answer_tokens=12))
    assert again.prefix is not None and again.prefix.state == "read"
    assert again.sources == first.sources and again.text == first.text


def test_how_far_the_sources_are_read_is_told(server: Server, index: SmallIndex) -> None:
    told: list[Event] = []
    ask(index, "When is high water?", server, OVER, told.append)
    read = [e for e in told if e.kind == "reading"]
    assert all(0 <= e.done <= e.total for e in read) and read[-1].done == read[-1].total > 0
    kinds = [e.kind for e in told if e.kind != "note"]
    assert kinds.index("sources") < kinds.index("reading") < kinds.index("text")


def test_who_hangs_up_while_the_sources_are_read_leaves_the_server_free(
    server: Server, index: SmallIndex
) -> None:
    class Gone(Exception):
        pass

    def leave(event: Event) -> None:
        if event.kind == "reading":
            raise Gone

    for options in (OVER, replace(OVER, prefix=False)):
        with pytest.raises(Gone):
            ask(index, "When is high water?", server, options, leave)
        assert files(server) == []
    after = ask(index, "When is high water?", server, OVER)
    assert after.prefix is not None and after.prefix.state == "made"


def test_a_changed_document_is_computed_anew_and_its_file_removed(
    server: Server, index: SmallIndex
) -> None:
    ask(index, "When?", server, OVER)
    (old,) = files(server)
    index.put("docs/tides.md", "Low water is at six o'clock on every day of June, they say.")
    answer = ask(index, "When?", server, OVER)
    assert answer.prefix is not None and answer.prefix.state == "made"
    assert "documents that have changed" in answer.prefix.told()
    assert old not in files(server) and len(files(server)) == 1


def damaged(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)


def shortened(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def of_other_tokens(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[40] ^= 1
    file.write_bytes(data)


def swapped(file: Path) -> None:
    """With its record, so that only the tokens in it betray it."""
    others = [f for f in file.parent.glob("*.slot") if f != file]
    file.write_bytes(others[0].read_bytes())
    mine, theirs = (json.loads(f.with_suffix(".json").read_text()) for f in (file, others[0]))
    file.with_suffix(".json").write_text(json.dumps({**theirs, "key": mine["key"]}))


def record_of_another(file: Path) -> None:
    record = json.loads(file.with_suffix(".json").read_text())
    record["key"]["weights"] = "0" * 64
    file.with_suffix(".json").write_text(json.dumps(record))


def record_is_no_json(file: Path) -> None:
    file.with_suffix(".json").write_text("{")


def gone(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize(
    "change",
    [damaged, shortened, of_other_tokens, swapped, record_of_another, record_is_no_json, gone],
)
def test_a_file_that_is_not_what_it_should_be_is_refused(
    server: Server, index: SmallIndex, change: Callable[[Path], None]
) -> None:
    ask(index, "When?", server, replace(OVER, over=("bad.md",), answer_tokens=1))
    theirs = files(server)
    first = ask(index, "When?", server, OVER)
    (mine,) = set(files(server)) - set(theirs)
    change(mine)
    answer = ask(index, "When?", server, OVER)
    assert answer.prefix is not None and answer.prefix.state == "made"
    assert "refused" in answer.prefix.told() and answer.text == first.text
    assert ask(index, "When?", server, OVER).prefix.state == "read"  # type: ignore[union-attr]


def test_a_file_of_another_setting_is_told_and_left(server: Server, index: SmallIndex) -> None:
    ask(index, "When?", server, OVER)
    foreign = replace(server, setting="f16/f16")
    answer = ask(index, "When?", foreign, OVER)
    # The server's cache is not in 16 bits, whatever it was said to be: nothing is kept of it.
    assert answer.prefix is not None and answer.prefix.state == "off"
    assert "q8_0/q4_0, not f16/f16" in answer.prefix.why
    assert ask(index, "When?", server, OVER).prefix.state == "read"  # type: ignore[union-attr]
    other = connect(server)
    assert isinstance(other, LlamaCppAnswers)


def test_another_model_or_build_does_not_read_it(
    server: Server, index: SmallIndex, tiny_model: Path
) -> None:
    ask(index, "When?", server, OVER)
    answer = ask(index, "When?", replace(server, weights=tiny_model), OVER)
    assert answer.prefix is not None and answer.prefix.state == "made"
    assert "another model" in answer.prefix.why and len(files(server)) == 2


def test_without_a_folder_or_a_model_nothing_is_kept(
    server: Server, index: SmallIndex, tmp_path: Path
) -> None:
    for changed in (replace(server, slots=None), replace(server, weights=tmp_path / "gone.gguf"),
                    replace(server, slots=tmp_path / "elsewhere")):  # fmt: skip
        answer = ask(index, "When?", changed, OVER)
        assert answer.prefix is not None and answer.prefix.state == "off" and answer.prefix.why
        assert answer.text and not list((tmp_path / "elsewhere").glob("*.slot"))


def test_documents_are_no_control_tokens(server: Server, index: SmallIndex) -> None:
    answering = connect(server)
    assert isinstance(answering, LlamaCppAnswers)
    try:
        assert answering.tokens("</s>", special=True) == [2]
        assert 2 not in answering.tokens("</s>")
    finally:
        answering.close()
    answer = ask(index, "the rules about pilots </s>", server, replace(OVER, over=("bad.md",)))
    (file,) = files(server)
    assert 2 not in parse_slot(file.read_bytes()).tokens and answer.text is not None


def test_more_than_the_context_holds(server: Server, index: SmallIndex) -> None:
    index.put("long.md", "A long tale of many words. " * 200)
    answer = ask(index, "What?", server, Options(over=("long.md",), answer_tokens=8))
    assert 0 < answer.packed.used < answer.packed.found
    assert any("packed" in note for note in answer.notes)
    with pytest.raises(NybbleError, match="no passage fits"):
        ask(index, "why " * 1000, server, Options(over=("docs/tides.md",), answer_tokens=8))


def test_a_smaller_context_than_was_told_packs_less(
    server: Server, index: SmallIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server counts for itself: here it is told to have more room than it has."""
    real = LlamaCppAnswers.__init__

    def wider(self: LlamaCppAnswers, *given: object) -> None:
        real(self, *given)  # type: ignore[arg-type]
        self.context = 3000

    monkeypatch.setattr(LlamaCppAnswers, "__init__", wider)
    index.put("long.md", "A long tale of many words. " * 200)
    answer = ask(index, "What?", server, Options(over=("long.md",), answer_tokens=8))
    assert any("exceeds its context" in note for note in answer.notes)
    assert answer.usage.prompt is not None and answer.usage.prompt <= 2048


def test_a_key_is_demanded(server: Server, index: SmallIndex) -> None:
    assert server.key
    with pytest.raises(NybbleError, match="wants a key"):
        ask(index, "When?", replace(server, key=None), OVER)


def test_the_longest_unused_files_go_first(server: Server, index: SmallIndex) -> None:
    ask(index, "When?", server, OVER)
    (old,) = files(server)
    small = replace(OVER, over=("bad.md",), keep_prefixes=0.0)
    answer: Answer = ask(index, "When?", server, small)
    assert answer.prefix is not None and answer.prefix.state == "made"
    assert old not in files(server) and len(files(server)) == 1
    url = server.url.removesuffix("/v1")
    slots = httpx.get(f"{url}/slots", headers={"Authorization": f"Bearer {server.key}"}).json()
    assert len(slots) == 1


def test_a_reader_who_stops_ends_the_generation(server: Server, index: SmallIndex) -> None:
    class Stopped(Exception):
        pass

    pieces = []

    def stop(event: Event) -> None:
        if event.kind == "text":
            pieces.append(event.text)
            if len(pieces) == 3:
                raise Stopped

    options = replace(OVER, answer_tokens=500)
    with pytest.raises(Stopped) as caught:
        ask(index, "When?", server, options, stop)
    with httpx.Client(headers={"Authorization": f"Bearer {server.key}"}) as http:
        slots = f"{server.url.removesuffix('/v1')}/slots"
        end = time.monotonic() + 60
        while (slot := http.get(slots).json()[0])["is_processing"]:
            assert time.monotonic() < end
            time.sleep(0.05)
    assert caught.value is not None  # its traceback holds all frames until here
    assert slot["next_token"][0]["n_decoded"] < 500, slot
