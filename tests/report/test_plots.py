"""Pictures: what is drawn, that it is steady, and that labels stay apart."""

from __future__ import annotations

import dataclasses
import re
import warnings
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib
import pytest
from report_builders import LONGEST, measurement, references
from report_builders import row as make_row

from nybble.errors import NybbleError
from nybble.formats.registry import KV_TYPES
from nybble.report import format as fmt
from nybble.report import plots, view
from nybble.report.charts import callouts, canvas, families, labels, pareto
from nybble.results.records import Estimate, Measurement, Row

EXPECTED = {
    "one": {"quality", "sides", "along", "categories"},
    "two_models": {"quality", "models", "along", "categories"},
    "two_contexts": {"quality", "along", "categories"},
    "few": {"quality", "sides", "along", "categories"},
    "many": {"quality", "pareto", "along", "categories"},
    "taken_apart": {"quality", "along", "categories"},
    "by_head": set(),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_charts_fit_the_measurement(name: str, request: pytest.FixtureRequest) -> None:
    found = plots.charts(request.getfixturevalue(name))
    assert {c.key for c in found} == EXPECTED[name]
    for chart in found:
        root = ET.fromstring(chart.svg)
        assert root.get("role") == "img" and len(root.get("aria-label", "")) > 40
        assert chart.rows and all(len(r) == len(chart.header) for r in chart.rows)
        assert len(root.findall(".//title")) >= 3, "tooltips"
        assert "http" not in chart.svg and "<style" not in chart.svg
        assert "font-family" not in chart.svg and "metadata" not in chart.svg


def test_inline_colours_are_variables_only(one: Measurement) -> None:
    for chart in plots.charts(one):
        assert "var(--fg)" in chart.svg and "#0101" not in chart.svg
        colours = set(re.findall(r"#[0-9a-f]{6}\b", chart.svg))
        assert chart.key == "categories" or not colours


def test_ids_are_unique_over_all_pictures_and_resolve(one: Measurement) -> None:
    found = "".join(c.svg for c in plots.charts(one))
    ids = re.findall(r'\bid="([^"]+)"', found)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', found))
    assert {a or b for a, b in used} <= set(ids)


def test_same_measurement_same_svg(one: Measurement) -> None:
    before = dict(matplotlib.rcParams)
    assert plots.charts(one) == plots.charts(one)
    assert dict(matplotlib.rcParams) == before


def test_hostile_names_are_text(one: Measurement) -> None:
    nasty = ["$\\frac{$", "</text><script>", "\x00\uffff", "ስለሰብአዊ", "a" * 300, "%s{x}"]
    rows = []
    for row in one.rows:
        parts = [
            dataclasses.replace(p, name=n) for p, n in zip(row.by_category, nasty, strict=False)
        ]
        rows.append(dataclasses.replace(row, by_category=parts))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = {c.key: c for c in plots.charts(dataclasses.replace(one, rows=rows))}
    svg = found["categories"].svg
    assert "<script" not in svg and "$\\frac{$" in svg and "ስለሰብአዊ" in svg


def crowded(one: Measurement, n: int = 12) -> Measurement:
    base = next(r for r in one.rows if r.setting == "q4_0/q4_0")
    rows = [
        dataclasses.replace(
            base,
            setting=f"q{i}_0/q4_{i}-norot",
            bits=4.5 + 0.5 * (i % 4),
            bytes_per_token=1000 * (4.5 + 0.5 * (i % 4)),
            metrics=base.metrics | {"mean_kld": Estimate(0.02 * 1.09**i, 0.019, 0.06)},
        )
        for i in range(n)
    ]
    return dataclasses.replace(one, rows=rows)


def boxes(m: Measurement, key: str = "quality") -> list[tuple[str, labels.Box]]:
    with canvas.style("test"):
        picture = plots.PICTURES[key](m, canvas.PRINT)
        assert picture is not None
        texts = picture.figure.axes[0].texts
        return [(t.get_text(), labels.extent(t)) for t in texts]


def test_labels_of_the_quality_picture_do_not_overlap(
    one: Measurement, two_models: Measurement, many: Measurement
) -> None:
    for m in (one, two_models, crowded(one), many):
        assert_apart(boxes(m))


def assert_apart(found: list[tuple[str, labels.Box]]) -> None:
    for i, (first, a) in enumerate(found):
        for second, b in found[i + 1 :]:
            assert a.overlap(b) < 1.0, (first, second)


def test_many_settings_name_the_front_and_dim_the_rest(many: Measurement) -> None:
    shown = {text for text, _ in boxes(many)}
    front = view.named(view.groups(many)[0])
    assert 5 < len(front) < 12 and {"nyb4/nyb4", LONGEST} < front
    assert {fmt.label(s) for s in front} <= shown and "q4_0/q4_0" not in shown
    chart = plots.charts(many)[0]
    for row in many.rows:
        if row.role == "candidate":
            assert f"<title>{row.setting}: mean KLD" in chart.svg, "every mark has a tooltip"
            assert any(r[0] == row.setting for r in chart.rows), "tables are never shortened"
    assert "dimmed" in chart.caption and "stored bits" in chart.svg
    along = next(c for c in plots.charts(many) if c.key == "along")
    assert ">nyb4/nyb4</text>" in along.svg and ">q4_0/q4_0</text>" not in along.svg


def test_few_settings_are_all_named(one: Measurement) -> None:
    group = view.groups(one)[0]
    assert view.named(group) == {r.setting for r in group.done}
    assert "dimmed" not in plots.charts(one)[0].caption


def test_modifiers_are_not_taken_for_another_setting(one: Measurement) -> None:
    more = [
        dataclasses.replace(r, setting=f"{r.setting}+skip0.1")
        for r in one.rows
        if "f16" in r.setting
    ]
    found = {c.key: c for c in plots.charts(dataclasses.replace(one, rows=[*one.rows, *more]))}
    names = {row[0] for row in found["sides"].rows}
    assert names == {"q4_0", "q4_0+skip0.1"}


def test_spread_keeps_order_and_gap() -> None:
    found = labels.spread([5.0, 5.1, 5.2, 0.0, 40.0], 3.0, 0.0, 41.0)
    ordered = sorted(found)
    assert ordered == [found[i] for i in (3, 0, 1, 2, 4)]
    assert all(b - a >= 3.0 - 1e-9 for a, b in zip(ordered, ordered[1:], strict=False))
    assert ordered[0] >= 0.0 and ordered[-1] <= 41.0


def test_pareto_front() -> None:
    assert view.pareto([(4.5, 0.04), (6.5, 0.009), (8.5, 0.001), (10.0, 0.03)]) == [0, 1, 2]


def test_odd_measurements_draw_or_are_left_out(one: Measurement) -> None:
    base = one.rows[0]
    zero = dataclasses.replace(base, metrics={"mean_kld": Estimate(0.0)}, by_category=[])
    bare = Row("q8_0/q8_0", "candidate", 512, "q8_0", "q8_0", metrics={"mean_kld": Estimate(0.01)})
    failed = dataclasses.replace(base, metrics={}, status="failed", by_position=[], by_category=[])
    for rows in ([zero], [bare], [failed], [], [base, bare, zero, failed]):
        m = dataclasses.replace(one, rows=rows, protocol={})
        keys = {c.key for c in plots.charts(m)}
        assert ("quality" in keys) == any("mean_kld" in r.metrics for r in rows)


def test_bytes_on_the_axis_when_bits_do_not_decide(one: Measurement) -> None:
    rows = [
        dataclasses.replace(r, bytes_per_token=r.bytes_per_token * (1 + 0.2 * i))
        for i, r in enumerate(one.rows)
        if r.metrics
    ]
    chart = plots.charts(dataclasses.replace(one, rows=rows))[0]
    assert "bytes per token" in chart.svg and "stored bits" not in chart.svg


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_save_picture(one: Measurement, tmp_path: Path, ending: str) -> None:
    for name in ("x", "y"):
        plots.save_picture(one, tmp_path / f"{name}.{ending}")
    first = (tmp_path / f"x.{ending}").read_bytes()
    assert first == (tmp_path / f"y.{ending}").read_bytes()
    if ending == "svg":
        text = first.decode()
        root = ET.fromstring(text)
        assert root.get("width") and "var(--" not in text and "#ffffff" in text
    else:
        assert first.startswith(b"\x89PNG") and len(first) > 10_000


def test_save_picture_refuses(one: Measurement, tmp_path: Path) -> None:
    with pytest.raises(NybbleError, match="SVG or PNG"):
        plots.save_picture(one, tmp_path / "x.pdf")
    with pytest.raises(NybbleError, match="nothing to draw"):
        plots.save_picture(dataclasses.replace(one, rows=[]), tmp_path / "x.svg")
    with pytest.raises(NybbleError, match="cannot be written"):
        plots.save_picture(one, tmp_path / "no" / "x.svg")


def test_pareto_names_do_not_overlap(many: Measurement) -> None:
    found = boxes(many, "pareto")
    assert_apart(found)
    shown = {text for text, _ in found}
    assert {"nyb4", "exl3_5", "q4_0", "kivi_k4/v4", "turboquant_k4/v4+skip0.…"} <= shown
    assert len(shown) > 40, "there is room for every one of these"


def test_pareto_is_light_and_dark(many: Measurement) -> None:
    text = plots.pareto_svg(many)
    assert text == plots.pareto_svg(many)
    root = ET.fromstring(text)
    assert root.tag.endswith("svg") and root.get("width") and len(root.get("aria-label", "")) > 100
    assert "prefers-color-scheme:dark" in text and "#0101" not in text
    used = set(re.findall(r"var\((--[a-z0-9]+)\)", text))
    assert used and all(text.count(f"{name}:") == 2 for name in used), "in both themes"
    assert 'style="fill: var(--bg)"' in text
    legend = {t.text for t in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"llama.cpp", "vLLM", "ExLlama", "mlx-lm", "transformers", "LMDeploy"} <= legend
    assert {"KIVI", "TurboQuant", "nybble"} <= legend


def test_themes_are_those_of_the_page() -> None:
    css = (Path(plots.__file__).parent / "report.css").read_text(encoding="utf-8")
    light, dark = (css.split(start)[1].split("}")[0] for start in (":root {", '"dark"] {'))
    for theme, block in ((canvas.PRINT, light), (canvas.DARK, dark)):
        for name, colour in canvas.variables(theme).items():
            assert f"{name}: {colour};" in block


def test_pareto_counts_bits_at_a_context(many: Measurement) -> None:
    shrunk = [
        dataclasses.replace(r, cache_bytes_at={"8192": r.cache_bytes_at["8192"] // 2})
        if r.setting == "q8_0/q8_0"
        else r
        for r in many.rows
    ]
    m = dataclasses.replace(many, rows=shrunk)
    with canvas.style("test"):
        picture = pareto.picture(m, canvas.PRINT, 8192)
    assert picture is not None
    bits = {r[0]: r[2] for r in picture.rows}
    assert bits["q8_0/q8_0"] == "4.25" and bits["q4_0/q4_0"] == "4.5"
    assert "at 8,192 tokens of context" in plots.pareto_svg(m, 8192)
    with pytest.raises(NybbleError, match="no cache bytes were recorded"):
        plots.pareto_svg(m, 512)
    with pytest.raises(NybbleError, match="nothing to draw"):
        plots.pareto_svg(dataclasses.replace(m, rows=[]))


def test_pareto_of_one_setting(few: Measurement) -> None:
    single = measurement([make_row("q4_0/q4_0", 0.04), *references(4096)])
    assert "q4_0" in plots.pareto_svg(single) and "q4_0" in plots.pareto_svg(few)


@pytest.mark.parametrize("name", sorted(KV_TYPES))
def test_every_type_has_a_family(name: str) -> None:
    found = families.family(Row(f"{name}/{name}", "candidate", 512, name, name))
    expected = {
        "exllamav2": "ExLlama", "exllamav3": "ExLlama", "lmdeploy": "LMDeploy", "sglang": "SGLang",
    }  # fmt: skip
    engines = {expected.get(e, {"vllm": "vLLM"}.get(e, e)) for e in KV_TYPES[name].engines}
    if name in ("f16", "bf16", "f32"):
        assert found is families.OTHER
    elif found.name not in ("TurboQuant", "KIVI"):
        assert found.name in engines


def test_the_family_is_that_of_the_quantized_side() -> None:
    of = families.family(Row("f16/exl3_4", "candidate", 512, "f16", "exl3_4"))
    assert of.name == "ExLlama"


def test_crowds() -> None:
    marks = [(0.0, 0.0), (5.0, 10.0), (3.0, 25.0), (40.0, 0.0), (2.0, 100.0)]
    assert callouts.crowds(marks) == [[2, 1, 0], [4], [3]]
    assert callouts.crowds([]) == []
