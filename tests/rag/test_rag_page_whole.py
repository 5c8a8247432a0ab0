"""The page over a real index and the real `ask`: a server that streams, one that dies."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from page_browser import Page, chromium, look
from page_doubles import HOSTILE, page
from page_index import small_index
from rag_ask_doubles import FakeChat, chatting

from nybble.rag.answers import Options, Server
from nybble.rag.ask import ask
from nybble.rag.index import open_index
from nybble.rag.web.desk import Desk
from nybble.rag.web.gauge import Engine


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        look(browser, 1200, "light")
        yield browser


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_index(tmp_path_factory.mktemp("harbour") / "documents")


@contextmanager
def opened(driver: Any, where: Path, fake: FakeChat) -> Iterator[Page]:
    """The page before a server that behaves as it is told."""
    with chatting(fake) as url, open_index(where) as index:
        engine = Engine("fake", None, fake.context)
        desk = Desk(index, Server(url), engine, Options(k=12), ask)
        with page(desk) as server:
            driver.get(server.url)
            driver.get_log("browser")
            yield Page(driver)
            driver.get("about:blank")
        desk.close()


def test_a_hostile_document_is_cited_and_stays_text(driver: Any, where: Path) -> None:
    says = f'The pilot boards at "buoy seven" [1], not at "buoy nine, at night" [1]. {HOSTILE} [19]'
    fake = FakeChat(says=says)
    with opened(driver, where, fake) as p:
        p.ask("Where does the pilot board?")
        marks = "[...document.querySelectorAll('.answer .cite')].map(e => e.className)"
        assert p.run(f"return {marks}") == ["cite", "cite doubt", "cite missing"]
        assert HOSTILE in p.text(".answer")
        assert p.text(".source .name").startswith(f"{HOSTILE} Pilots")
        warnings = p.text(".warnings")
        assert "no such source: [19]" in warnings and "buoy nine" in warnings
        assert "packed" in p.text(".sources summary")
        p.click(".answer .cite")
        p.until("return document.getElementById('source-text').textContent.length > 50")
        assert HOSTILE in p.text("#source mark")
        assert "pilots <b>.md" in p.text("#source-place")
        p.click("#source-over")
        p.ask("And at night?")
        assert p.run("return [document.images.length, window.bad]") == [0, None]
        assert "not told by this server" in p.text("#cache")
        assert driver.get_log("browser") == []
    assert len(fake.requests) == 2
    asked = str(fake.requests[1]["messages"])
    assert "buoy seven" in asked and "crane" not in asked.lower(), "only the chosen document"


def test_a_server_that_dies_in_mid_answer(driver: Any, where: Path) -> None:
    with opened(driver, where, FakeChat(says="Crane 3 lifts 103 tonnes [1].", dies_after=4)) as p:
        p.ask("What does crane 3 lift?")
        assert p.text(".answer") == "Crane 3 lifts 103"
        assert "ended its answer" in p.text(".failure") or "mid-answer" in p.text(".failure")
        assert p.text(".facts-line") == "the answer is not complete"


def test_a_server_that_is_gone(driver: Any, where: Path) -> None:
    with opened(driver, where, FakeChat()) as p:
        pass
    with open_index(where) as index:
        desk = Desk(index, Server("http://127.0.0.1:9/v1"), Engine("fake"), Options(), ask)
        with page(desk) as server:
            driver.get(server.url)
            p.ask("What does crane 3 lift?")
            assert "does not answer" in p.text(".failure") and "try:" in p.text(".failure")
            assert p.text(".answer") == ""
            driver.get("about:blank")


def test_too_small_a_context_packs_less_and_says_so(driver: Any, where: Path) -> None:
    with opened(driver, where, FakeChat(context=1200)) as p:
        p.ask("What does crane 3 lift?")
        packed = re.match(r"packed (\d+) of 12 passages", p.text(".sources summary"))
        assert packed is not None and 0 < int(packed[1]) < 12
        assert "do not fit" in p.text(".notes")
