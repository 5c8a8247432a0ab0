"""The site in headless Chromium, from file:// addresses, as a visitor uses it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_builders import SCRIPT
from site_builders import IMPORTED, cells, details
from test_browser import driver  # noqa: F401  the fixture

from nybble.report.site import entries
from nybble.report.site.build import build_site

Go = Callable[..., Any]
COLUMN = "return [...document.querySelectorAll('#table tbody .c-%s')].map(c => c.innerText)"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A title and names that would run, if anything here did.
    out = tmp_path_factory.mktemp("site")
    return build_site(cells(), IMPORTED, out, title=f"Board {SCRIPT}", details=details()).index


@pytest.fixture
def go(driver: Any, site: Path) -> Any:  # noqa: F811
    """Open a page of the site; the browser's log must stay empty."""

    def load(page: str = "index.html", width: int = 1300, theme: str = "light") -> Any:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        driver.get("about:blank")
        driver.get(site.parent.as_uri() + "/" + page)
        # The driver may still mean the blank page when it says that all is loaded.
        until(driver, "location.protocol + document.readyState", "file:complete")
        return driver

    driver.get_log("browser")
    yield load
    assert driver.get_log("browser") == []


def column(browser: Any, key: str) -> list[str]:
    found: list[str] = browser.execute_script(COLUMN % key)
    return found


def until(browser: Any, script: str, wanted: Any = True) -> None:
    """A change of the address is drawn a moment later."""
    end, found = time.monotonic() + 5, None
    while time.monotonic() < end:
        found = browser.execute_script(f"return {script}")
        if found == wanted:
            return
        time.sleep(0.02)
    assert found == wanted, script


def numbers(browser: Any) -> list[float | None]:
    """Mean KLD of the drawn rows; None where there is none."""
    texts = [t.split("\n")[0].removeprefix("≥ ") for t in column(browser, "kld")]
    return [None if t == "–" else float(t) for t in texts]


def test_board_draws_a_page_of_rows_without_a_network(go: Go) -> None:
    browser = go()
    assert len(column(browser, "kld")) == 50
    assert browser.execute_script("return document.getElementById('count').innerText").startswith(
        "1–50 of "
    )
    fetched = browser.execute_script(
        "return [...document.querySelectorAll('script, link[rel=stylesheet]')]"
        ".map(e => e.src || e.href)"
    )
    assert len(fetched) == 7 and all(n.startswith("file://") for n in fetched)
    assert browser.execute_script(
        "return [document.images.length, document.querySelectorAll('iframe').length]"
    ) == [0, 0]


def test_sorting_by_keyboard_puts_missing_values_last_both_ways(go: Go) -> None:
    from selenium.webdriver.common.keys import Keys

    browser = go("index.html#q=served&sort=bits")
    for direction in ("ascending", "descending"):
        button = browser.find_element("css selector", "[data-sort=kld]")
        button.send_keys(Keys.ENTER)
        until(browser, "document.querySelector('[aria-sort]')?.ariaSort", direction)
        assert browser.execute_script("return document.activeElement.dataset.sort") == "kld"
        found = numbers(browser)
        assert found[-1] is None and None not in found[:-1] and len(found) == 6
        assert found[:-1] == sorted(found[:-1], reverse=direction == "descending")
    assert browser.execute_script(
        "return document.querySelectorAll('[aria-sort]').length"
    ) == 1  # fmt: skip


def test_filters_live_in_the_address(go: Go) -> None:
    from selenium.webdriver.support.ui import Select

    browser = go()
    Select(browser.find_element("name", "kind")).select_by_value("stored")
    until(browser, "location.hash.includes('kind=stored')")
    Select(browser.find_element("name", "verdict")).select_by_value("safe")
    until(browser, "document.getElementById('count').innerText", "1–6 of 6 measurements")
    link = browser.current_url
    browser.back()
    until(browser, "document.getElementsByName('verdict')[0].value", "")
    assert len(column(browser, "kld")) > 6
    browser.forward()
    until(browser, "document.getElementById('count').innerText", "1–6 of 6 measurements")
    browser.get("about:blank")
    browser.get(link)  # as another visitor would
    assert {t.strip("● \n") for t in column(browser, "verdict")} == {"safe"}
    assert browser.execute_script("return document.getElementsByName('kind')[0].value") == "stored"
    browser.find_element("id", "reset").click()
    until(browser, "document.getElementById('reset').hidden")
    assert len(column(browser, "kld")) == 50


def test_search_and_every_filter_pick_the_rows_they_name(go: Go) -> None:
    models = entries.models(cells())
    hard = next(m for m in models if m.more == "gemma-hard.gguf")
    for address, key, holds in (
        (f"model={hard.id}", "model", lambda t: "gemma-hard.gguf" in t),
        ("kv=q8_0", "setting", lambda t: "q8_0" in t),
        ("context=1024", "context", lambda t: t == "1,024"),
        ("engine=vllm", "engine", lambda t: t == "vllm\n0.12.0"),
        ("verdict=broken", "verdict", lambda t: "broken" in t),
        ("q=GEMMA-HARD+q4_0", "model", lambda t: "gemma-hard.gguf" in t),
    ):
        found = column(go(f"index.html#{address}"), key)
        assert found and all(map(holds, found)), address


def test_a_value_that_is_not_here_is_named(go: Go) -> None:
    browser = go("index.html#engine=%3Cimg%20src=x%20onerror=alert(1)%3E")
    assert column(browser, "kld") == []
    assert "No measurement passes" in browser.find_element("id", "count").text
    box = browser.find_element("name", "engine")
    assert box.get_attribute("value").startswith("<img")
    assert not browser.find_element("id", "reset").get_property("hidden")


def test_pages_of_rows(go: Go) -> None:
    browser = go("index.html#sort=kld")
    first = column(browser, "kld")
    browser.find_element("id", "next").click()
    until(browser, "location.hash", "#sort=kld&page=2")
    until(browser, "document.getElementById('page').innerText.startsWith('page 2')")
    second = numbers(browser)
    assert column(browser, "kld") != first and len(second) <= 50
    browser = go("index.html#page=999")
    assert browser.find_element("id", "next").get_property("disabled")
    assert column(browser, "kld")


def test_simulated_rows_do_not_look_stored(go: Go) -> None:
    looks = {}
    for kind in ("stored", "simulated", "lower bound"):
        browser = go(f"index.html#kind={kind.replace(' ', '+')}")
        looks[kind] = browser.execute_script(
            "const c = document.querySelector('#table tbody .c-kld');"
            "return [getComputedStyle(c).fontStyle,"
            " c.parentElement.querySelector('.tag')?.innerText ?? '']"
        )
    assert looks == {
        "stored": ["normal", ""], "simulated": ["italic", "simulated"],
        "lower bound": ["italic", "lower bound"],
    }  # fmt: skip


def test_command_is_shown_and_copied(go: Go) -> None:
    browser = go("index.html#q=served")
    browser.find_element("css selector", "#table tbody summary").click()
    code = browser.find_element("css selector", "#table tbody code").text
    assert code.startswith("nybble measure 'gemma-3-1b-it-\"><img src=x onerror=alert(1)>.gguf'")
    browser.execute_script(
        "window.copied = null;"
        "navigator.clipboard.writeText = t => { window.copied = t; return Promise.resolve(); }"
    )
    browser.find_element("css selector", "#table tbody [data-copy]").click()
    until(browser, "window.copied", code)
    until(browser, "document.querySelector('#table tbody [data-copy]').innerText", "Copied")


def test_comparison_of_two_models_from_the_address(go: Go) -> None:
    models = entries.models(cells())
    soft, hard = (next(m for m in models if m.more == f) for f in ("gemma.gguf", "gemma-hard.gguf"))
    browser = go(f"compare.html#a={soft.id}&b={hard.id}")
    count = browser.find_element("id", "count").text
    assert count == "10 settings measured on both in the same way"
    rows = browser.execute_script(
        "return [...document.querySelectorAll('#table tbody tr')].map(r =>"
        " ['bits', 'context', 'b over a', 'lower'].map(l =>"
        "  r.querySelector(`[data-label='${l}']`).innerText))"
    )
    assert {r[1] for r in rows} == {"1,024", "4,096"}
    assert {r[2] for r in rows} == {"0.33"} and {r[3] for r in rows} == {"b"}
    browser.find_element("css selector", "#choice button").click()
    until(browser, "document.querySelector(`[data-label='b over a']`).innerText", "3.0")
    browser.back()
    until(browser, "document.querySelector(`[data-label='b over a']`).innerText", "0.33")
    go(f"compare.html#a={soft.id}&b=nobody")
    assert "There is no model nobody here" in browser.find_element("id", "count").text


@pytest.mark.parametrize("width", [375, 800])
def test_pages_are_usable_on_narrow_screens(width: int, go: Go, site: Path) -> None:
    model = next((site.parent / "models").glob("gemma-3-270m*")).name
    for page in ("index.html", "compare.html", "other.html", f"models/{model}", "types/q4_0.html"):
        browser = go(page, width=width)
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width, page
    browser = go("index.html", width=375)
    # Each row is a card with the names of its numbers, and sorting is a choice.
    assert browser.execute_script(
        "const c = document.querySelector('#table tbody .c-flips');"
        "return [getComputedStyle(c, '::before').content, c.getBoundingClientRect().right <= 375]"
    ) == ['"flips"', True]
    assert browser.find_element("name", "by").is_displayed()


def test_light_and_dark(go: Go) -> None:
    ask = (
        "return ['body', '#chart-overall text', '#table tbody .c-kld'].map(s =>"
        " { const c = getComputedStyle(document.querySelector(s));"
        "   return s === 'body' ? c.backgroundColor : s[1] === 'c' ? c.fill : c.color; })"
    )
    light = go(theme="light").execute_script(ask)
    dark = go(theme="dark").execute_script(ask)
    assert all(a != b for a, b in zip(light, dark, strict=True))


def test_nothing_foreign_runs(go: Go, site: Path) -> None:
    hostile = next((site.parent / "models").glob("gemma-3-1b*")).name
    for page in ("index.html", f"models/{hostile}", "other.html"):
        browser = go(page)
        assert SCRIPT in browser.title
        # No dialog is open, or this would raise; and the policy runs no script of the page's own.
        browser.execute_script(
            "const s = document.createElement('script'); s.textContent = 'window.bad = 1';"
            "document.body.append(s)"
        )
        assert browser.execute_script("return window.bad") is None
        refused = browser.get_log("browser")
        assert len(refused) == 1 and "Content Security Policy" in refused[0]["message"]
