"""Pictures of a plan and its cost: positions against numbers, gaps, odd plans, labels apart."""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import test_browser

from nybble.errors import NybbleError
from nybble.report import plan_plots
from nybble.report.charts import canvas, cost, labels, memory
from nybble.report.charts.canvas import Picture
from nybble.report.charts.plan_axes import tokens
from nybble.results.plans import CardRecord, Choice, CostComparison, CostRecord, Fit, Plan, Quality
from nybble.results.records import Estimate

driver = test_browser.driver  # one browser for the tests of this file

GIB = 2**30
CARDS = CardRecord("rtx-4090", 1, 24564 * 2**20, 512 * 2**20)
PAIR = dataclasses.replace(CARDS, count=2)
# Stored bits an element and mean KLD of settings as measured on an 8B model.
SETTINGS = {
    "f16/f16": (16.0, None),
    "q8_0/q8_0": (8.5, 0.0009),
    "q8_0/q4_0": (6.5, 0.0089),
    "q5_1/q4_0": (5.25, 0.019),
    "q4_0/q4_0": (4.5, 0.043),
    "q5_0/q5_0": (5.5, 0.021),
    "q5_1/q5_1": (6.0, 0.017),
    "q4_1/q4_1": (5.0, 0.051),
}


def fit(
    setting: str,
    plan_for: CardRecord | None = CARDS,
    *,
    weights: int = int(17.3 * GIB),
    kib: float = 84.0,
    longest: int = 262_144,
    engine: str = "llama.cpp",
    start: int = 4096,
    **more: Any,
) -> Fit:
    """A fit of a model with `kib` KiB a token at 16 bits, half a GiB of buffers and a window."""
    bits, kld = SETTINGS.get(setting, (4.5, 0.04))
    each = kib * 1024 * bits / 16
    fixed = weights + GIB // 2 + round(0.4 * GIB * bits / 16)

    def total(context: int) -> int:
        return round(fixed + each * context)

    curve = {c: total(c) for c in (2**p for p in range(9, 40)) if start <= c < longest}
    curve[longest] = total(longest)
    budget = None if plan_for is None else plan_for.count * (plan_for.n_bytes - plan_for.reserve)
    found, limited = None, None
    if budget is not None:
        room = max(0, math.floor((budget - fixed) / each / 256)) * 256
        found, limited = min(room, longest), "card" if room < longest else "model"
    quality = kld and Quality(Estimate(kld), None, "safe", "m", True, 4096, "runs/x")
    return Fit(
        engine, setting, bits, each, found, limited, {c: total(c) for c in (8192, 65536)},
        quality=quality or None, curve=curve, **more,
    )  # fmt: skip


def plan(names: list[str] | None = None, card: CardRecord | None = CARDS, **more: Any) -> Plan:
    weights = more.get("weights", int(17.3 * GIB))
    names = list(SETTINGS)[:5] if names is None else names
    fits = tuple(fit(n, card, **more) for n in names)
    longest = more.get("longest", 262_144)
    return Plan(
        "gemma-4-31b-it-qat-q4_0", "gemma4", weights, "tensors", longest, card, 1, (8192, 65536),
        fits,
    )  # fmt: skip


OWNED = "2 x rtx-4090, q8_0/q4_0"


def record(name: str, how: str, low: float, high: float, **more: Any) -> CostRecord:
    return CostRecord(name, how, per_million_out=(low, high), month=(low * 90, high * 90), **more)


def comparison(contexts: tuple[int, ...] = (8192, 16384, 32768, 65536, 131072)) -> CostComparison:
    """Own cards, rented ones, a dear server that fits less, and two APIs."""
    curve: dict[int, tuple[CostRecord, ...]] = {}
    for i, context in enumerate(contexts):
        grow = 1.55**i
        curve[context] = (
            record(OWNED, "owned", 0.35 * grow, 1.2 * grow),
            record(OWNED, "rented", 0.8 * grow, 2.9 * grow),
            record("2 x rtx-4090, f16/f16", "owned", 0.4 * grow**1.8, 1.5 * grow**1.8)
            if i < 3
            else CostRecord("2 x rtx-4090, f16/f16", "owned", refused="no sequence fits"),
            record("1 x h100-sxm, q8_0/q8_0", "rented", 1.9 * grow**0.8, 4.4 * grow**0.8),
            record("gemma-4-31b at a host", "api", 0.55 * (1 + i), 0.9 * (1 + i)),
        )
    return CostComparison(
        "gemma-4-31b-it-qat-q4_0", (("users", "8"),), curve[contexts[0]], (), curve
    )


def crowd(n: int = 14) -> CostComparison:
    base = comparison()
    curve = {
        c: tuple(
            dataclasses.replace(r, name=f"{k + 1} x {r.name}", per_million_out=tuple(
                v * 1.3**k for v in r.per_million_out
            ))
            for k in range(n // 5 + 1)
            for r in records
        )
        for c, records in base.curve.items()
    }  # fmt: skip
    return dataclasses.replace(base, costs=curve[8192], curve=curve)


def drawn(found: Plan | CostComparison, engine: str | None = None) -> Picture:
    with canvas.style("test"), warnings.catch_warnings():
        warnings.simplefilter("error")
        if isinstance(found, Plan):
            picture = memory.draw(found, canvas.PRINT, engine)
        else:
            picture = cost.draw(found, canvas.PRINT)
        assert picture is not None
        return picture


def texts(picture: Picture) -> list[str]:
    return [t.get_text() for t in picture.figure.axes[0].texts]


def assert_apart(picture: Picture) -> None:
    """No label covers another, and none leaves the canvas."""
    with canvas.style("test"):
        axes = picture.figure.axes[0]
        ticks = axes.get_xticklabels()
        low, high = axes.get_ylim()
        ticks += [t for t in axes.get_yticklabels() if low <= t.get_position()[1] <= high]
        found = [*axes.texts, *ticks, axes.xaxis.label, axes.yaxis.label]
        found = [*found, *(t for t in (axes.title, axes._left_title) if t.get_text())]
        boxes = [(t.get_text(), labels.extent(t)) for t in found if t.get_text()]
        width, height = picture.figure.bbox.size
    for i, (text, box) in enumerate(boxes):
        assert box.inside(labels.Box(-1, -1, width + 1, height + 1)), text
        for other, second in boxes[i + 1 :]:
            assert box.overlap(second) < 1.0, (text, other)


def curves(picture: Picture, name: str) -> list[Any]:
    """The two parts of a line, below and above the limit, then its dot."""
    lines = picture.figure.axes[0].lines
    return [x for x in lines if picture.tips.get(x.get_gid() or "", "").startswith(f"{name}: ")]


def dots(picture: Picture) -> list[tuple[float, float]]:
    marks = [x for x in picture.figure.axes[0].lines if x.get_marker() == "o"]
    return sorted((float(x.get_xdata()[0]), float(x.get_ydata()[0])) for x in marks)


def test_lines_are_where_the_numbers_are() -> None:
    p = plan()
    picture = drawn(p)
    assert p.budget is not None
    for f in p.fits:
        below, above, _ = curves(picture, f.setting)
        assert below.get_ydata()[-1] <= p.budget / GIB + 1e-6 <= above.get_ydata()[-1]
        assert above.get_xdata()[-1] == pytest.approx(262_144)
        assert above.get_ydata()[-1] == pytest.approx(f.curve[262_144] / GIB)
        at = dict(zip(below.get_xdata(), below.get_ydata(), strict=True))
        assert at[8192.0] == pytest.approx(f.curve[8192] / GIB)
    wanted = sorted((f.largest_context, p.budget / GIB) for f in p.fits)
    assert dots(picture) == [pytest.approx(w) for w in wanted]
    said = texts(picture)
    assert {f.setting for f in p.fits} <= set(said)
    assert {tokens(f.largest_context or 0) for f in p.fits} == {
        "64K",
        "125K",
        "165K",
        "206K",
        "241K",
    }
    assert {"64K", "125K", "165K", "206K", "241K", "weights, 17.3 GiB"} <= set(said)
    assert "rtx-4090, 23.5 GiB usable" in said
    band = next(x for x in picture.figure.axes[0].patches if x.get_gid())
    assert band.get_bbox().extents[[1, 3]] == pytest.approx([0, 17.3], abs=1e-6)
    assert_apart(picture)


def test_two_cards_and_several_sequences() -> None:
    p = plan(card=PAIR, weights=int(39.6 * GIB), kib=320, longest=131_072)
    picture = drawn(dataclasses.replace(p, sequences=4))
    assert "2 x rtx-4090, 47.0 GiB usable" in texts(picture)
    assert "each of 4 sequences" in picture.figure.axes[0].get_xlabel()
    assert "2 x rtx-4090 with 47.0 GiB usable" in picture.summary
    assert_apart(picture)


def test_lines_that_leave_through_the_top_are_named_there() -> None:
    p = plan(weights=5 * GIB, kib=144, longest=2**20)
    picture = drawn(p)
    top = picture.figure.axes[0].get_ylim()[1]
    assert p.budget is not None and p.budget / GIB < top < 3 * p.budget / GIB
    out = [curves(picture, f.setting)[1] for f in p.fits]
    assert [x.get_ydata()[-1] == pytest.approx(top) for x in out] == [True] * 4 + [False]
    for f, line in zip(p.fits[:4], out, strict=False):
        fixed = f.curve[4096] - 4096 * f.bytes_per_token
        assert line.get_xdata()[-1] == pytest.approx(
            (top * GIB - fixed) / f.bytes_per_token, rel=0.01
        )
    assert {f.setting for f in p.fits} <= set(texts(picture))
    assert_apart(picture)


def test_refused_fits_and_other_engines_are_left_out() -> None:
    p = plan(["f16/f16", "q8_0/q8_0"])
    refused = Fit("llama.cpp", "q4_0/q4_0", refused="no such type on this GPU")
    other = fit("q4_0/q4_0", engine="vLLM")
    p = dataclasses.replace(p, fits=(refused, *p.fits, other))
    picture = drawn(p)
    assert [r[0] for r in picture.rows] == ["f16/f16", "q8_0/q8_0"]
    assert "q4_0/q4_0" not in texts(picture) and "1 setting that the engine" in picture.caption
    assert [r[0] for r in drawn(p, "vLLM").rows] == ["q4_0/q4_0"]
    assert "in vLLM" in drawn(p, "vLLM").figure.axes[0].get_title("left")
    for none in (dataclasses.replace(p, fits=(refused,)), dataclasses.replace(p, fits=())):
        assert memory.draw(none, canvas.PRINT) is None
    assert memory.draw(p, canvas.PRINT, "SGLang") is None


def test_one_setting_and_one_context() -> None:
    picture = drawn(plan(["q8_0/q4_0"]))
    assert len(dots(picture)) == 1 and "165K" in texts(picture)
    assert_apart(picture)
    single = dataclasses.replace(fit("q8_0/q4_0", None), curve={8192: 19 * GIB})
    assert_apart(drawn(dataclasses.replace(plan(["q8_0/q4_0"], None), fits=(single,))))


def test_no_card_no_limit() -> None:
    picture = drawn(plan(card=None))
    assert dots(picture) == [] and not any("usable" in t for t in texts(picture))
    assert all(row[3] == "–" for row in picture.rows) and "dot" not in picture.caption
    assert_apart(picture)


def test_many_settings_name_the_useful_ones() -> None:
    p = plan(list(SETTINGS))
    picture = drawn(p)
    front = {"f16/f16", "q8_0/q8_0", "q8_0/q4_0", "q5_1/q5_1", "q5_1/q4_0", "q4_0/q4_0"}
    assert front <= set(texts(picture))
    assert not {"q4_1/q4_1", "q5_0/q5_0"} & set(texts(picture)) and "dimmed" in picture.caption
    assert len(picture.rows) == 8 and len(dots(picture)) == 8, "dimmed, not gone"
    assert_apart(picture)
    chosen = Choice("q4_1/q4_1", "llama.cpp", "because", ())
    assert "q4_1/q4_1" in texts(drawn(dataclasses.replace(p, choice=chosen)))
    bare = tuple(dataclasses.replace(f, quality=None) for f in p.fits)
    picture = drawn(dataclasses.replace(p, fits=bare))
    shown = set(texts(picture)) & set(SETTINGS)
    assert len(shown) == 6 and {"f16/f16", "q4_0/q4_0"} <= shown
    assert_apart(picture)


def test_what_does_not_fit_and_what_the_model_limits() -> None:
    full = plan(weights=30 * GIB)
    assert all(f.largest_context == 0 for f in full.fits)
    picture = drawn(full)
    assert dots(picture) == [] and "does not fit" in picture.summary
    assert_apart(picture)
    roomy = plan(weights=2 * GIB, kib=28, longest=32_768)
    picture = drawn(roomy)
    assert dots(picture) == [] and "32,768 tokens" in picture.caption
    assert any(t.endswith("far above") for t in texts(picture)), "24 GiB are far above 4"
    assert picture.figure.axes[0].get_ylim()[1] < 6
    assert_apart(picture)


def test_long_names_and_a_line_that_ends_early() -> None:
    p = plan(list(SETTINGS)[:6], weights=GIB, kib=400, longest=2**20)
    long = [dataclasses.replace(f, setting=f"{f.setting}+skip0.1,last4") for f in p.fits]
    for kept in (long, long[:3], long[2:]):
        assert_apart(drawn(dataclasses.replace(p, model="m" * 90, fits=tuple(kept))))
    early = dataclasses.replace(p.fits[5], curve={4096: 2 * GIB, 65536: 8 * GIB})
    picture = drawn(dataclasses.replace(p, fits=(*p.fits[:5], early)))
    assert "q5_0/q5_0" in texts(picture)
    joints = [x.get_xdata() for x in picture.figure.axes[0].lines if len(x.get_xdata()) == 3]
    assert all(x[0] > 65536 for x in joints if x[1] > x[0] * 1.01)
    assert_apart(picture)


def test_equal_lines_are_both_seen() -> None:
    p = plan(["q4_0/q4_0", "nyb4/nyb4"])
    first, second = (curves(drawn(p), f.setting)[0].get_linestyle() for f in p.fits)
    assert {first, second} == {"-", "--"} and [*texts(drawn(p))].count("241K") == 1


def test_hostile_and_huge() -> None:
    name = "$\\frac{<b>&$ \x1b[0m"
    p = plan(card=dataclasses.replace(CARDS, name=name, count=4096), longest=2**34, kib=2000)
    odd = dataclasses.replace(p.fits[0], setting=name + "a" * 99)
    p = dataclasses.replace(p, model=name, fits=(odd, *p.fits[1:]))
    picture = drawn(p)
    assert not any(t.startswith("weights") for t in texts(picture)), "the band is a hair"
    assert any(t.startswith("4,096 x $\\frac{<b>&$ \ufffd[0m") for t in texts(picture))
    assert_apart(picture)
    with canvas.style("test"):
        c = comparison()
        curve = {
            k: tuple(
                dataclasses.replace(r, name=name + r.name, per_million_out=(1e-9, 1e12)) for r in v
            )
            for k, v in c.curve.items()
        }
    assert_apart(drawn(dataclasses.replace(c, model=name, curve=curve)))


def series(picture: Picture, name: str, how: str) -> list[tuple[float, float]]:
    start = f"{name}, {how}, at "
    marks = [
        x
        for x in picture.figure.axes[0].lines
        if picture.tips.get(x.get_gid() or "", "").startswith(start)
    ]
    return [(float(m.get_xdata()[0]), float(m.get_ydata()[0])) for m in marks]


def test_costs_are_where_the_numbers_are() -> None:
    c = comparison()
    picture = drawn(c)
    for i, r in enumerate(c.curve[8192]):
        wanted = [
            (k, math.sqrt(math.prod(v[i].per_million_out)))
            for k, v in c.curve.items()
            if not v[i].refused
        ]
        assert series(picture, r.name, r.how) == [pytest.approx(w) for w in wanted]
    ends = [f"{OWNED}, owned", f"{OWNED}, rented", "gemma-4-31b at a host, API"]
    assert {*ends, "2 x rtx-4090, f16/f16, owned"} <= set(texts(picture))
    styles = {x.get_linestyle() for x in picture.figure.axes[0].lines if len(x.get_xdata()) == 5}
    assert styles == {"-", "--"} and len({d for d, _ in cost._HOW.values()}) == 3
    assert "solid owned, dashed rented, dotted from an API" in picture.caption
    assert picture.header[:3] == ("option", "how", "8K") and len(picture.rows) == 5
    row = next(r for r in picture.rows if "f16" in r[0])
    assert row[2] == "0.4 to 1.5" and row[5:] == ("–", "–")
    assert_apart(picture)


def test_a_gap_is_a_gap() -> None:
    c = comparison()
    hole = {
        k: tuple(
            dataclasses.replace(r, refused="does not fit") if k in (16384, 65536) and not i else r
            for i, r in enumerate(v)
        )
        for k, v in c.curve.items()
    }
    picture = drawn(dataclasses.replace(c, curve=hole))
    assert [x for x, _ in series(picture, OWNED, "owned")] == [8192, 32768, 131072]
    whole = [x for x in picture.figure.axes[0].lines if list(x.get_xdata()) == list(c.curve)]
    assert len(whole) == 3, "rented, the API and the other card; nothing crosses the gap"
    assert_apart(picture)


def test_odd_costs() -> None:
    c = comparison()
    free = {
        k: (*v, record("free", "api", 0.0, 0.0), record("endless", "owned", 1.0, math.inf))
        for k, v in c.curve.items()
    }
    picture = drawn(dataclasses.replace(c, curve=free))
    assert len(picture.rows) == 5
    assert_apart(drawn(comparison((8192,))))
    assert cost.draw(dataclasses.replace(c, curve={}), canvas.PRINT) is None
    gone = {k: (CostRecord("x", "owned", refused="no"),) for k in c.curve}
    assert cost.draw(dataclasses.replace(c, curve=gone), canvas.PRINT) is None


def test_many_options_name_the_cheapest() -> None:
    picture = drawn(crowd())
    named = [t for t in texts(picture) if re.search(", (owned|rented|API)$", t)]
    assert len(named) == 6 and "dimmed" in picture.caption and len(picture.rows) == 15
    assert any(t.endswith("API") for t in named) and any(t.endswith("rented") for t in named)
    assert_apart(picture)


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_files(tmp_path: Path, ending: str) -> None:
    for name in ("x", "y"):
        plan_plots.save_memory(plan(), tmp_path / f"m{name}.{ending}")
        plan_plots.save_cost(comparison(), tmp_path / f"c{name}.{ending}")
    for kind in "mc":
        data = (tmp_path / f"{kind}x.{ending}").read_bytes()
        assert data == (tmp_path / f"{kind}y.{ending}").read_bytes()
        if ending == "png":
            assert data.startswith(b"\x89PNG") and len(data) > 10_000
            continue
        root = ET.fromstring(data)
        assert root.get("width") and len(root.get("aria-label", "")) > 100
        assert len(root.findall(".//{*}title")) >= 10
        assert b"prefers-color-scheme:dark" in data and b"#0101" not in data


def test_files_are_refused(tmp_path: Path) -> None:
    for save in (
        lambda path: plan_plots.save_memory(plan(), path),
        lambda path: plan_plots.save_cost(comparison(), path),
    ):
        with pytest.raises(NybbleError, match="SVG or PNG"):
            save(tmp_path / "x.pdf")
        with pytest.raises(NybbleError, match="cannot be written"):
            save(tmp_path / "no" / "x.svg")
    with pytest.raises(NybbleError, match=r"nothing to draw(.|\n)*allowed: llama.cpp"):
        plan_plots.save_memory(plan(), tmp_path / "x.svg", "vLLM")
    with pytest.raises(NybbleError, match="nothing to draw"):
        plan_plots.save_memory(plan([]), tmp_path / "x.svg")
    with pytest.raises(NybbleError, match="nothing to draw"):
        plan_plots.save_cost(CostComparison("m", (), ()), tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_browser_shows_both_themes(driver: Any, tmp_path: Path) -> None:
    script = """
        const all = [...document.querySelectorAll('text')].map(
          t => [t.textContent, t.getBoundingClientRect()]);
        const frame = document.documentElement.getBoundingClientRect(), out = [];
        all.forEach(([s, a], i) => {
          if (a.left < frame.left - 1 || a.right > frame.right + 1) out.push('outside: ' + s);
          for (const [r, b] of all.slice(i + 1)) {
            const w = Math.min(a.right, b.right) - Math.max(a.left, b.left);
            const h = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
            if (w > 1 && h > 0.35 * Math.min(a.height, b.height)) out.push(s + ' / ' + r);
          }
        });
        return [out, ...['rect', 'text'].map(
          n => getComputedStyle(document.querySelector(n)).fill)];
        """
    plan_plots.save_memory(plan(list(SETTINGS)), tmp_path / "memory.svg")
    plan_plots.save_cost(comparison(), tmp_path / "cost.svg")
    for name in ("memory", "cost"):
        seen = []
        for theme in ("light", "dark"):
            media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            driver.get((tmp_path / f"{name}.svg").as_uri())
            seen.append(driver.execute_script(script))
        assert seen[0][0] == seen[1][0] == []
        assert [s[1] for s in seen] == ["rgb(255, 255, 255)", "rgb(20, 23, 27)"]
        assert seen[0][2] != seen[1][2]
