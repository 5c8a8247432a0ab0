"""The page in headless Chromium: it draws, obeys the theme, and runs nothing foreign."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nybble.report.hardened import hardened_html
from nybble.report.html import html_report
from nybble.report.plots import pareto_svg
from nybble.results.hardened import Hardened
from nybble.results.records import Measurement

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Marks drawn at least: <path> and <use> elements.
DRAWN = {
    "quality": 15,
    "pareto": 90,
    "models": 8,
    "sides": 6,
    "along": 25,
    "categories": 14,
    "parts0": 80,
    "parts1": 80,
    "before-texts": 36,
    "before-layers": 54,
}
ALL = (
    "one", "two_models", "two_contexts", "few", "many", "taken_apart", "by_head",
    "hardened", "hardened_bare", "hardened_deep",
)  # fmt: skip
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One browser for all tests of this file."""
    missing = [str(p) for p in (CHROMIUM, DRIVER) if not p.exists()]
    try:
        from selenium import webdriver
    except ImportError:
        missing.append("the Python package selenium")
    if missing:
        reason = f"no browser test: {', '.join(missing)} missing"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield browser
    browser.quit()


@pytest.fixture
def opened(driver: Any, tmp_path: Path) -> Open:
    """Write a report and open it at a width and theme."""

    def load(m: Measurement | Hardened, width: int = 1100, theme: str = "light") -> Any:
        path = tmp_path / "report.html"
        page = hardened_html(m) if isinstance(m, Hardened) else html_report(m)
        path.write_text(page, encoding="utf-8")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        driver.get_log("browser")
        driver.get(path.as_uri())
        return driver

    return load


@pytest.mark.parametrize(
    ("name", "charts"),
    [
        ("one", ["quality", "sides", "along", "categories"]),
        ("two_models", ["quality", "models", "along", "categories"]),
        ("two_contexts", ["quality", "along", "categories"]),
        ("few", ["quality", "sides", "along", "categories"]),
        ("many", ["quality", "pareto", "along", "categories"]),
        ("taken_apart", ["quality", "along", "categories", "parts0", "parts1"]),
        ("by_head", ["parts0"]),
        ("hardened", ["before-texts", "before-layers", "quality", "models"]),
        ("hardened_bare", ["quality", "models"]),
        ("hardened_deep", ["before-texts", "before-layers"]),
    ],
)
def test_pictures_are_drawn(
    name: str, charts: list[str], opened: Open, request: pytest.FixtureRequest
) -> None:
    browser = opened(request.getfixturevalue(name))
    for key in charts:
        found = browser.execute_script(
            "const s = document.getElementById('chart-' + arguments[0]); if (!s) return null;"
            "const b = s.getBoundingClientRect();"
            "return [b.width, b.height, s.querySelectorAll('path,use').length,"
            " s.querySelectorAll('text').length];",
            key,
        )
        assert found, key
        width, height, marks, texts = found
        # "sides" of one type is three bars, hence low.
        assert width > 200 and height > 100, key
        assert marks >= DRAWN[key] and texts > 4, key
    assert browser.get_log("browser") == []


def test_nothing_foreign_runs(opened: Open, one: Measurement, two_models: Measurement) -> None:
    from selenium.common.exceptions import NoAlertPresentException

    for m in (one, two_models):
        browser = opened(m)
        with pytest.raises(NoAlertPresentException):
            _ = browser.switch_to.alert.text
        assert browser.title == (
            " against ".join(x.name for x in m.models) + ": quality of a quantized KV cache"
        )
        count = browser.execute_script(
            "return [document.scripts.length, document.images.length,"
            " performance.getEntriesByType('resource').length]"
        )
        assert count == [2, 0, 0]
        # Even a script that got in would not run: the policy names one hash.
        browser.execute_script(
            "const s = document.createElement('script'); s.textContent = 'window.bad = 1';"
            "document.body.append(s)"
        )
        assert browser.execute_script("return window.bad") is None


def test_light_and_dark(opened: Open, one: Measurement) -> None:
    ask = (
        "const c = getComputedStyle(document.body);"
        "const t = document.querySelector('#chart-quality text');"
        "return [c.backgroundColor, c.color, getComputedStyle(t).fill]"
    )
    light = opened(one, theme="light").execute_script(ask)
    browser = opened(one, theme="dark")
    dark = browser.execute_script(ask)
    assert all(a != b for a, b in zip(light, dark, strict=True))
    browser.execute_script("document.getElementById('theme').click()")
    assert browser.execute_script(ask) == light
    assert browser.get_log("browser") == []


def test_copy_button_holds_the_command(opened: Open, one: Measurement) -> None:
    browser = opened(one)
    shown = browser.execute_script("return document.getElementById('command').textContent")
    assert shown == one.command
    browser.execute_script("document.getElementById('copy').click()")
    assert browser.execute_script("return !document.getElementById('copy').hidden")


def test_tooltips(opened: Open, one: Measurement) -> None:
    titles = opened(one).execute_script(
        "return [...document.querySelectorAll('#chart-quality .mark > title')]"
        ".map(t => t.textContent)"
    )
    assert any(t.startswith("q8_0/q8_0: mean KLD 0.00091 [") for t in titles)
    assert any(t.startswith("noise floor") for t in titles)


@pytest.mark.parametrize("name", ALL)
def test_narrow_page_does_not_scroll_sideways(
    name: str, opened: Open, request: pytest.FixtureRequest
) -> None:
    browser = opened(request.getfixturevalue(name), width=400)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    widths = browser.execute_script(
        "return [document.documentElement.scrollWidth, window.innerWidth]"
    )
    assert widths[0] <= widths[1] == 400


@pytest.mark.parametrize("name", ALL)
def test_main_table_fits_a_desktop(name: str, opened: Open, request: pytest.FixtureRequest) -> None:
    browser = opened(request.getfixturevalue(name), width=1100)
    over = browser.execute_script(
        "const t = document.querySelector('table.main').parentElement;"
        "return t.scrollWidth - t.clientWidth"
    )
    assert over <= 0


@pytest.mark.parametrize("name", ALL)
def test_svg_texts_do_not_overlap(name: str, opened: Open, request: pytest.FixtureRequest) -> None:
    clashes = opened(request.getfixturevalue(name)).execute_script(
        """
        const out = [];
        for (const svg of document.querySelectorAll('figure svg')) {
          const frame = svg.getBoundingClientRect();
          const all = [...svg.querySelectorAll('text')].map(t => [t, t.getBoundingClientRect()]);
          all.forEach(([t, a], i) => {
            if (a.left < frame.left - 1 || a.right > frame.right + 1
                || a.top < frame.top - 1 || a.bottom > frame.bottom + 1)
              out.push(svg.id + ' outside: ' + t.textContent);
            for (const [u, b] of all.slice(i + 1)) {
              const w = Math.min(a.right, b.right) - Math.max(a.left, b.left);
              const h = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
              // A text's box has empty lines above and below its letters.
              if (w > 1 && h > 0.35 * Math.min(a.height, b.height))
                out.push(svg.id + ': ' + t.textContent + ' / ' + u.textContent);
            }
          });
        }
        return out;
        """
    )
    assert clashes == []


def test_where_it_hurts_is_a_section(opened: Open, taken_apart: Measurement) -> None:
    found = opened(taken_apart).execute_script(
        """
        const section = document.getElementById('h-parts').parentElement;
        const region = section.querySelector('details');
        region.open = true;
        const first = region.querySelector('tbody tr');
        return [section.querySelectorAll('figure').length,
          section.querySelectorAll('#chart-parts0 .mark > title').length,
          [...first.cells].map(c => c.textContent),
          section.querySelector('h3').textContent,
          region.querySelector('table').getBoundingClientRect().width > 200]
        """
    )
    assert found[:2] == [2, 38], "36 parts, the whole setting, the noise floor"
    assert found[2][:3] == ["0", "K", "0.0013 [0.0011, 0.0017]"]
    assert found[3:] == ["q4_0/q4_0", True]


def test_picture_file_follows_the_theme(driver: Any, tmp_path: Path, many: Measurement) -> None:
    path = tmp_path / "pareto.svg"
    path.write_text(pareto_svg(many), encoding="utf-8")
    seen = []
    for theme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        driver.get(path.as_uri())
        seen.append(
            driver.execute_script(
                "return ['rect', 'text'].map(n => getComputedStyle(document.querySelector(n)).fill)"
            )
        )
    assert seen[0][0] == "rgb(255, 255, 255)" and seen[1][0] == "rgb(20, 23, 27)"
    assert seen[0][1] != seen[1][1]


def test_before_and_after_come_first(opened: Open, hardened: Hardened) -> None:
    from selenium.common.exceptions import NoAlertPresentException

    browser = opened(hardened)
    with pytest.raises(NoAlertPresentException):
        _ = browser.switch_to.alert.text
    found = browser.execute_script(
        """
        const tops = ['gained', 'h-before', 'chart-before-texts', 'chart-before-layers',
          'promises', 'h-both', 'recommendation', 'h-results', 'cells', 'h-how', 'command'].map(
            n => document.getElementById(n).getBoundingClientRect().top);
        const details = document.getElementById('promises');
        const closed = details.getBoundingClientRect().height;
        details.open = true;
        const rows = details.querySelectorAll('tbody tr');
        return [tops, closed < 60 && details.getBoundingClientRect().height > 300,
          [...rows[17].cells].map(c => c.textContent),
          JSON.parse(document.getElementById('hardened').textContent).tokens,
          document.images.length + performance.getEntriesByType('resource').length];
        """
    )
    assert found[0] == sorted(found[0])
    assert found[1:] == [True, ["17", "7.9", "11.4"], 2048, 0]
    assert browser.get_log("browser") == []


def test_a_page_without_a_command_runs_its_script(opened: Open, hardened_bare: Hardened) -> None:
    browser = opened(hardened_bare)
    hidden = browser.execute_script("return document.getElementById('theme').hidden")
    assert hidden is False and browser.get_log("browser") == []
