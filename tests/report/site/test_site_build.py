"""The site's files: what they say, what they never hold, and what happens to a folder."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from site_builders import IMPORTED, cells, details

from nybble.errors import NybbleError
from nybble.report.site import data, entries, files, pictures
from nybble.report.site.build import build_site
from nybble.report.site.entries import page_name, smallest_safe, type_page


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "site"
    return build_site(cells(), IMPORTED, out, details=details()).index.parent


@pytest.fixture(scope="module")
def board() -> list[dict[str, Any]]:
    """The rows as the browser reads them."""
    found = json.loads(data.script(entries.models(cells()))[len("window.NYBBLE = ") : -2])
    rows = []
    for values in found["rows"]:
        row = dict(zip(found["fields"], values, strict=True))
        row = {k: v if k in found["numbers"] else found["texts"][v] for k, v in row.items()}
        rows.append(row | {"model": found["models"][row["model"]]})
    return rows


def read(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def page(site: Path, model: str, more: str = "") -> str:
    """A model's page, by its name and its file's."""
    models = entries.models(cells())
    found = next(m for m in models if m.name.startswith(model) and more in m.more)
    return (site / "models" / f"{found.id}.html").read_text(encoding="utf-8")


def test_equal_bases_give_equal_bytes(tmp_path: Path) -> None:
    found = cells("gemma", "hardened", "against", "hostile")
    one = build_site(found, IMPORTED, tmp_path / "one", details=details())
    random.Random(1).shuffle(found)
    two = build_site(found, IMPORTED[::-1], tmp_path / "two", details=details())
    assert read(one.index.parent) == read(two.index.parent)


def test_nothing_foreign_is_html(site: Path) -> None:
    for name, content in read(site).items():
        text = content.decode()
        assert "<script>alert" not in text and "<img" not in text, name
        assert "http://" not in text and "https://" not in text, name
    assert "<" not in (site / "assets" / "data.js").read_text(encoding="utf-8")
    # They are there, as text.
    assert "&lt;script&gt;alert(1)" in (site / "index.html").read_text(encoding="utf-8")


def test_links_lead_to_files(site: Path) -> None:
    for path in site.rglob("*.html"):
        for link in re.findall(r'(?:href|src)="([^"]*)"', path.read_text(encoding="utf-8")):
            target = link.partition("#")[0]
            if target and not target.startswith("data:"):
                assert (path.parent / target).is_file(), (path.name, link)


def test_only_candidates_on_their_own_cache_are_ranked(board: list[dict[str, Any]]) -> None:
    expected = [c for c in cells() if c.role == "candidate" and c.own]
    assert len(board) == len(expected)
    assert not {"f16/f16", "bf16/bf16"} & {r["setting"] for r in board}
    # Every run has a floor, and it stands beside the candidates.
    assert {r["floor_text"] for r in board} == {"4.4e-05"}


def test_board_begins_with_the_smallest_safe_setting(board: list[dict[str, Any]]) -> None:
    ranks = [9 if r["rank"] is None else r["rank"] for r in board]
    assert ranks == sorted(ranks)
    safe = [r["bits"] for r in board if r["verdict"] == "safe"]
    assert safe == sorted(safe)
    assert board[-1]["verdict"] == "failed" and board[-1]["mean_kld"] is None


def test_simulated_and_served_are_marked(board: list[dict[str, Any]]) -> None:
    kinds = {r["kind"] for r in board}
    assert kinds == {"stored", "simulated", "lower bound"}
    for r in board:
        mark = {"stored": "", "simulated": "\u00a0*", "lower bound": "\u00a0†"}[r["kind"]]
        assert r["setting"].endswith(mark or tuple("0123456789f"))
        if r["verdict"] != "failed":
            assert r["mean_kld_text"].startswith("≥ ") == (r["kind"] == "lower bound")
            assert not r["same_top_text"].startswith("≥")
            assert r["mean_kld_ci"].startswith("[")


def test_models_of_one_name_are_told_apart(site: Path) -> None:
    found = [m for m in entries.models(cells()) if m.name == "Gemma"]
    assert {m.more for m in found} == {"gemma.gguf", "gemma-hard.gguf"}
    assert len({m.id for m in found}) == 2
    assert "gemma-hard.gguf" in page(site, "Gemma", "gemma.gguf")  # a sibling


def test_smallest_safe_holds_at_every_context() -> None:
    (hardened,) = [m for m in entries.models(cells()) if m.more == "gemma-hard.gguf"]
    best = smallest_safe(hardened)
    assert best is not None and best.setting == "q8_0/q8_0"
    once = [
        dataclasses.replace(c, verdict="degraded")
        if (c.setting, c.context) == ("q8_0/q8_0", 1024) else c
        for c in hardened.cells
    ]  # fmt: skip
    rest = smallest_safe(dataclasses.replace(hardened, cells=tuple(once)))
    assert rest is None  # the others are unresolved or worse
    bound = [dataclasses.replace(c, top_k=64) for c in hardened.cells]
    assert smallest_safe(dataclasses.replace(hardened, cells=tuple(bound))) is None


def test_model_page(site: Path) -> None:
    text = page(site, "Gemma", "gemma-hard.gguf")
    assert "q8_0/q8_0 is the smallest setting that is safe wherever it was measured" in text
    assert ">1,024</th>" in text and ">4,096</th>" in text
    assert "By kind of text, at 4,096 tokens" in text and ">scripts</th>" in text
    assert 'id="chart-front0"' in text and "noise floor" in text
    assert "Against another model" in text and "0.50" in text
    assert "Against another model" not in page(site, "Served 7B")
    assert "chat template &#34;&gt;&lt;img" in page(site, "Gemma", "gemma.gguf")


def test_stored_and_simulated_never_share_a_picture(site: Path) -> None:
    (both,) = [m for m in entries.models(cells()) if m.name == "Gemma 3 270M"]
    charts = pictures.of_model(both)
    assert ["simulated" in c.title for c in charts] == [False, True]
    for chart in charts:
        marked = {row[0].endswith("*") for row in chart.rows}
        assert marked == {"simulated" in chart.title}
        assert [row[-1] for row in chart.rows].count("yes") >= 3


def test_front_over_all_models_takes_medians() -> None:
    chart = pictures.of_all(entries.models(cells()))
    assert chart is not None
    rows = {r[0]: r for r in chart.rows}
    # q4_0/q4_0: 0.043 on three models, three times that on another; simulated ones apart.
    assert rows["q4_0/q4_0"][3].startswith("0.043 [") and rows["q4_0/q4_0"][4] == "4"
    assert rows["q4_0/q4_0"][3].endswith("0.16]")
    assert not any(name.endswith("*") for name in rows)
    assert pictures.of_all(entries.models(cells())[:1]) is None


def test_type_page(site: Path) -> None:
    text = (site / "types" / "q4_0.html").read_text(encoding="utf-8")
    assert "blocks of 32 with one f16 scale" in text
    titles = re.findall(r'<h2 id="side\d">(.*?)</h2>', text)
    assert titles == ["K and V", "K alone", "V alone"]
    assert "does not know the type" in (site / "types" / "nyb4.html").read_text(encoding="utf-8")


def test_other_harnesses_have_tables_and_pages_of_their_own(site: Path) -> None:
    text = (site / "other.html").read_text(encoding="utf-8")
    first, second = text.split("<section")[1:]
    assert "0.00123" in first and "± 0.0001" in first and "acc_norm ↑" not in first
    assert "0.5125" in second and "not told" in second and "0.00123" not in second
    for name, content in read(site).items():
        assert name == "other.html" or b"0.5125" not in content, name


def test_a_base_of_imports_alone_and_an_empty_one(tmp_path: Path) -> None:
    assert build_site([], IMPORTED, tmp_path / "imports").index.is_file()
    with pytest.raises(NybbleError, match="no measurement"):
        build_site([], [], tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_stale_pages_go_and_other_files_stay(tmp_path: Path) -> None:
    out = tmp_path / "site"
    build_site(cells("gemma", "served"), IMPORTED, out)
    (out / "CNAME").write_text("example.org")
    (out / "models" / "mine.html").write_text("mine")
    found = build_site(cells("served"), [], out)
    assert found.removed == 2  # other.html and Gemma's page
    assert (out / "CNAME").exists() and (out / "models" / "mine.html").exists()
    kept = {n for n in read(out) if n not in ("CNAME", "models/mine.html", files.MANIFEST)}
    assert kept == set(json.loads((out / files.MANIFEST).read_text())["files"])
    assert len(kept) == found.files


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(NybbleError, match="no site of nybble"):
        build_site(cells("served"), [], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(NybbleError, match="is a file"):
        build_site(cells("served"), [], tmp_path / "thesis.txt")


def test_a_file_in_the_way_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "site"
    build_site(cells("served"), [], out)
    (out / "other.html").write_text("mine")
    with pytest.raises(NybbleError, match="not its own"):
        build_site(cells("served"), IMPORTED, out)
    assert (out / "other.html").read_text() == "mine"


@pytest.mark.parametrize(
    "manifest",
    ["{", "[]", '{"files": 3}', '{"files": ["../victim"]}', '{"files": ["/etc/passwd"]}',
     '{"files": ["link/victim"]}', '{"files": [""]}', "[" * 100_000],
)  # fmt: skip
def test_a_hostile_manifest_removes_nothing(manifest: str, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("here")
    out = tmp_path / "site"
    out.mkdir()
    (out / "link").symlink_to(tmp_path)
    (out / files.MANIFEST).write_text(manifest)
    with pytest.raises(NybbleError, match="manifest"):
        files.owned(out)
    assert (tmp_path / "victim").read_text() == "here"


@given(st.text(), st.text())
def test_page_names_are_safe_and_apart(a: str, b: str) -> None:
    for name in (page_name(a, a), type_page(a)):
        assert re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,48}", name)
    assert (type_page(a) == type_page(b)) == (a == b)
