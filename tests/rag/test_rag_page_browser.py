"""The page in headless Chromium: ask, watch, open a source; nothing foreign runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from page_browser import DONE, Page, chromium, look
from page_doubles import ANSWER, HOSTILE, TITLES, ScriptedDesk, page, passages

from nybble.errors import NybbleError


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


_DESK = ScriptedDesk()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with page(_DESK) as server:
        yield server.url


@pytest.fixture
def opened(driver: Any, url: str) -> Iterator[Callable[..., Page]]:
    """Open the page at a width and in a theme; it ends without a word in the console."""
    _DESK.__init__()  # type: ignore[misc]

    def load(width: int = 1200, theme: str = "light", at: str = url) -> Page:
        look(driver, width, theme)
        driver.get(at)
        driver.get_log("browser")
        return Page(driver, _DESK)

    yield load
    assert driver.get_log("browser") == []
    assert driver.execute_script("return window.bad") is None


def test_an_answer_is_written_as_it_comes(opened: Callable[..., Page]) -> None:
    p = opened()
    go = threading.Event()
    pieces = iter(range(1000))
    p.desk.step = lambda: go.wait(10) if next(pieces) == 6 else None
    p.ask(wait=False)
    p.until("return document.querySelector('.answer').textContent.length > 10")
    assert p.text(".answer") == ANSWER[:24], "an open bracket waits"
    assert p.run("return document.querySelector('.answer').getAttribute('aria-busy')") == "true"
    assert p.run("return [document.getElementById('stop').hidden,"
                 " document.getElementById('send').disabled]") == [False, True]  # fmt: skip
    go.set()
    p.until(DONE)
    # "[2, 3]" becomes two marks of their own.
    shown = p.text(".answer").replace("[2][3]", "[2, 3]").replace(" (there is no such passage)", "")
    assert shown == ANSWER
    facts = p.text(".facts-line")
    assert facts == "first token after 0.84 s · 96 tokens · 31.4 tokens/s · passages found in 41 ms"
    assert p.text(".sources summary") == "3 of 5 passages"
    assert "4,012 tokens from a file" in p.text(".notes")
    assert p.run("return document.activeElement.id") == "question"


def test_citations_are_buttons_and_false_ones_are_marked(opened: Callable[..., Page]) -> None:
    p = opened()
    p.ask()
    marks = "[...document.querySelectorAll('.answer .cite')]"
    assert p.run(f"return {marks}.map(e => [e.tagName, e.textContent])") == [
        ["BUTTON", "[1]"], ["BUTTON", "[2]"], ["BUTTON", "[3]"],
        ["SPAN", "[9] (there is no such passage)"],
    ]  # fmt: skip
    assert p.text(".cite.doubt") == "[3]"
    lines = p.run("return [...document.querySelectorAll('.answer .cite')]"
                  ".map(e => getComputedStyle(e).borderStyle)")  # fmt: skip
    assert lines == ["solid", "solid", "dashed", "solid"]
    warnings = "return [...document.querySelectorAll('.warnings li')].map(e => e.textContent)"
    assert p.run(warnings) == ["cites [9], which does not exist", "a quotation is not there"]


def test_a_source_opens_with_its_passage_marked(opened: Callable[..., Page]) -> None:
    p = opened()
    p.ask()
    p.click(".answer .cite", 1)
    p.until("return document.querySelector('#source mark') && "
            "document.getElementById('source-text').childNodes.length > 2")  # fmt: skip
    document = list(TITLES)[1]
    found = passages(document)
    assert p.text("#source mark") == found[1].text
    assert p.text("#source-text").startswith(found[0].text)
    assert p.text("#source-title") == f"[2] {TITLES[document]}"
    assert p.text("#source-place") == f"{document} · Section 1 · page 2"
    box = p.run("const m = document.querySelector('#source mark').getBoundingClientRect();"
                "const t = document.getElementById('source-text').getBoundingClientRect();"
                "return [m.top < t.bottom, m.bottom > t.top]")  # fmt: skip
    assert box == [True, True], "the marked passage is in sight"
    p.browser.switch_to.active_element.send_keys("\ue00c")
    p.until("return !document.getElementById('source').open")


def test_a_document_that_changed_since_shows_what_was_read(opened: Callable[..., Page]) -> None:
    p = opened()
    p.desk.changed = True
    p.ask()
    p.click(".answer .cite", 1)
    p.until("return !document.getElementById('source-note').hidden")
    assert "changed since" in p.text("#source-note")
    assert p.text("#source-text") == passages(list(TITLES)[1])[1].text


def test_hostile_text_stays_text(opened: Callable[..., Page]) -> None:
    from selenium.common.exceptions import NoAlertPresentException

    p = opened()
    p.ask(f"What about {HOSTILE}?")
    p.click(".answer .cite", 1)
    p.until("return document.querySelector('#source mark') !== null")
    p.click("#source-close")
    p.click("#rebuild")
    p.until("return document.querySelector('#job details') !== null")
    for place in (".answer", ".question", "#source-text", "#documents", ".sources", "#job"):
        assert HOSTILE[:30] in p.text(place), place
    assert p.run("return [document.images.length, document.scripts.length]") == [0, 1]
    with pytest.raises(NoAlertPresentException):
        _ = p.browser.switch_to.alert.text
    # Even a script of ours could not put text in as HTML, nor run one inline.
    assert p.run("try { document.body.innerHTML = '<b>x</b>'; return 'set' }"
                 " catch (e) { return e.name }") == "TypeError"  # fmt: skip
    p.browser.get_log("browser")


def test_only_this_server_is_asked(opened: Callable[..., Page], url: str) -> None:
    p = opened()
    p.ask()
    names = p.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert len(names) > 6 and all(name.startswith(url) for name in names)


def test_stop_ends_the_answer(opened: Callable[..., Page]) -> None:
    p = opened()
    p.desk.step = lambda: time.sleep(0.05)
    p.ask(wait=False)
    p.until("return document.querySelector('.answer').textContent.length > 10")
    p.click("#stop")
    p.until(DONE)
    assert p.text(".facts-line") == "stopped" and 10 < len(p.text(".answer")) < len(ANSWER)
    p.desk.step = lambda: None
    p.ask("Again?")
    assert p.desk.done == 1


def test_errors_are_shown_and_the_partial_answer_stays(opened: Callable[..., Page]) -> None:
    p = opened()
    p.desk.fails = NybbleError("the server is gone", seen="127.0.0.1:1", hint="start it again")
    p.ask()
    failure = p.text(".turn .failure")
    assert "the server is gone" in failure and "try: start it again" in failure
    assert len(p.text(".answer")) > 20 and p.text(".facts-line") == "the answer is not complete"


def test_over_the_same_passages(opened: Callable[..., Page]) -> None:
    p = opened()
    hidden = "return document.getElementById('again').hidden"
    assert p.run(hidden) is True
    p.ask()
    assert p.run(hidden) is False
    p.ask("A new one")
    p.click("#same")
    p.ask("And then?")
    assert [a.same for a in p.desk.asked] == [(), (), (1, 4, 7)]


def test_over_a_whole_document(opened: Callable[..., Page]) -> None:
    p = opened(width=390)
    p.click("#more")
    p.until("return document.querySelectorAll('#documents li').length === 3")
    for which in (1, 0):
        p.run("document.body.classList.add('side')")
        p.click("#documents button", which)
        p.click("#source-over")
        assert p.run("return document.body.classList.contains('side')") is False
    assert p.run("return document.activeElement.id") == "question"
    assert HOSTILE in p.text("#over") and p.run("return window.innerWidth") == 390
    p.ask()
    p.click("#over button")
    p.ask("And this one?")
    p.click("#over button")
    p.ask("All?")
    documents = list(TITLES)
    assert [a.over for a in p.desk.asked] == [(documents[1], documents[0]), (documents[0],), ()]
    assert p.run("return document.documentElement.scrollWidth") == 390


def test_the_side_tells_cache_and_index(opened: Callable[..., Page]) -> None:
    p = opened()
    p.until("return document.querySelectorAll('#documents li').length === 3")
    cache = p.text("#cache")
    for part in ("q8_0/q4_0", "1,024 of 4,096", "144 KiB of 576 KiB", "as the plan says"):
        assert part in cache
    assert "9" in p.text("#index") and "r1" in p.text("#index")
    go = threading.Event()
    p.desk.step = lambda: go.wait(10)
    p.click("#rebuild")
    p.until("return document.querySelector('#job progress') !== null")
    assert p.run("return document.getElementById('rebuild').disabled") is True
    go.set()
    p.until("return document.querySelector('#job details') !== null")
    assert "1 document added" in p.text("#job") and "scan.pdf: encrypted" in p.text("#job")
    p.until("return document.getElementById('index').textContent.includes('r1+')")
    p.type("#find", "guide")
    p.until("return document.querySelectorAll('#documents li').length === 1")
    p.click("#documents button")
    p.until("return document.getElementById('source-text').textContent.length > 100")
    assert p.text("#source-title") == "The cache"
    assert p.run("return document.querySelector('#source mark')") is None


def test_the_key_is_asked_for(opened: Callable[..., Page]) -> None:
    desk = ScriptedDesk()
    with page(desk, key="right") as server:
        p = opened(at=server.url)
        for key, wrong in (("wrong", ""), ("right", "This is not the key.")):
            p.until("return document.getElementById('key').open")
            assert p.text("#key-wrong") == wrong
            p.type("#key-value", key + "\n")
            p.until("return document.getElementById('key-value').value === ''")
        p.until("return document.getElementById('folder').textContent === 'corpus'")
        p.ask()
        assert desk.done == 1
        p.run("sessionStorage.clear()")
        p.browser.get("about:blank")
        told = p.browser.get_log("browser")
        assert all("401" in line["message"] for line in told)


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_does_not_scroll_sideways(opened: Callable[..., Page], width: int) -> None:
    p = opened(width=width)
    p.ask()
    sizes = "return [document.documentElement.scrollWidth, window.innerWidth]"
    assert p.run(sizes) == [width, width]
    inner = "return [...document.querySelectorAll('#read, aside, #source-text')]" \
            ".map(e => e.scrollWidth - e.clientWidth)"  # fmt: skip
    assert p.run("return getComputedStyle(document.getElementById('side')).display") == "none"
    p.click("#more")
    p.until("return document.querySelectorAll('#documents li').length === 3")
    assert p.run(sizes) == [width, width] and max(p.run(inner)) <= 0
    p.click("#more")
    p.click(".answer .cite", 2)
    p.until("return document.querySelector('#source mark') !== null")
    assert p.run(sizes) == [width, width] and max(p.run(inner)) <= 0
    box = p.run("const b = document.getElementById('source').getBoundingClientRect();"
                "return [b.left >= 0, b.right <= window.innerWidth]")  # fmt: skip
    assert box == [True, True]


CONTRAST = """
const shades = (c) => { const m = c.match(/[\\d.]+/g).map(Number); return m; };
const light = (c) => { const [r, g, b] = shades(c).slice(0, 3).map(v => { v /= 255;
  return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const ground = (e) => { for (; e; e = e.parentElement) {
  const c = getComputedStyle(e).backgroundColor;
  if (shades(c).length < 4 || shades(c)[3] > 0) return c; } return 'rgb(255, 255, 255)'; };
const out = [];
for (const e of document.querySelectorAll('body *')) {
  const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!own || !e.checkVisibility() || e.disabled) continue;
  const a = light(getComputedStyle(e).color), b = light(ground(e));
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  out.push([Math.round(ratio * 100) / 100, e.tagName + '.' + e.className + '#' + e.id]);
}
return out.sort((a, b) => a[0] - b[0]);
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out(opened: Callable[..., Page], theme: str) -> None:
    p = opened(theme=theme)
    p.ask()
    p.click("#rebuild")
    p.until("return document.querySelector('#job details') !== null")
    p.click(".answer .cite")
    p.until("return document.querySelector('#source mark') !== null")
    ratios = p.run(CONTRAST)
    assert len(ratios) > 40 and ratios[0][0] >= 4.5, ratios[:5]
    ground = p.run("return getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[theme]


def test_keys_reach_everything(opened: Callable[..., Page]) -> None:
    p = opened()
    p.ask()
    p.until("return document.querySelectorAll('#documents li').length === 3")
    focusable = p.run(
        "return [...document.querySelectorAll('button, input, textarea, summary')]"
        ".filter(e => e.checkVisibility() && !e.disabled).length"
    )
    p.run("document.activeElement.blur()")
    seen = set()
    for _ in range(focusable + 4):
        p.browser.switch_to.active_element.send_keys("\ue004")
        seen.add(p.run("const e = document.activeElement; return e.id || e.textContent"))
        outline = p.run("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or p.run("return document.activeElement === document.body")
    assert {"question", "send", "same", "rebuild", "find", "[1]", "The cache"} <= seen
