"""Where it hurts: every layer or head alone, and bits spread by what that says."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_runs import CONTEXT, cells, kld, request, row  # noqa: E402

from nybble.errors import NybbleError  # noqa: E402
from nybble.formats import make, parse  # noqa: E402
from nybble.formats.codec import Layer, layer_stores  # noqa: E402
from nybble.results.records import Part, Row, from_json  # noqa: E402
from nybble.scoring import run  # noqa: E402
from nybble.scoring.budget import LADDER, Rung, as_setting, greedy  # noqa: E402
from nybble.scoring.cells import part_series  # noqa: E402
from nybble.scoring.measure import Result, measure  # noqa: E402
from nybble.scoring.request import MeasureRequest  # noqa: E402
from torch_runs import in_process, scored, write_folder  # noqa: E402

Asked = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of two layers, two KV heads of 64."""
    return write_folder(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gemma3 of three layers, sliding, full, sliding by 8; two KV heads of 32."""
    return write_folder(tmp_path_factory.mktemp("models") / "tiny-gemma", "gemma3")


@pytest.fixture
def asked() -> Iterator[Asked]:
    with in_process() as found:
        yield found


LAYERS = [{"index": i, "count": 4, "heads": 2} for i in range(4)]


class TestSeries:
    def names(self, setting: str, by: str = "layer") -> list[str]:
        found = part_series(parse(setting), LAYERS, by)
        assert all(s.role == "part" and s.lane.model == s.reference == "a" for s in found)
        for s in found:
            assert s.part is not None and s.part.of == str(parse(setting))
            assert parse(str(s.lane.setting)) == s.lane.setting
        return [str(s.lane.setting) for s in found]

    def test_by_layer(self) -> None:
        assert self.names("q8_0/q4_0")[:3] == [
            "f16/f16+at0:q8_0/f16", "f16/f16+at0:f16/q4_0", "f16/f16+at1:q8_0/f16",
        ]  # fmt: skip
        assert len(self.names("q8_0/q4_0")) == 4 * 2

    def test_by_head(self) -> None:
        assert self.names("q4_0", "head")[:5] == [
            "f16/f16+at0h0:q4_0/f16", "f16/f16+at0h0:f16/q4_0", "f16/f16+at0h1:q4_0/f16",
            "f16/f16+at0h1:f16/q4_0", "f16/f16+at1h0:q4_0/f16",
        ]  # fmt: skip
        assert len(self.names("q4_0", "head")) == 4 * 2 * 2

    def test_a_side_in_f16_has_no_part(self) -> None:
        assert self.names("f16/q4_0") == [f"f16/f16+at{i}:f16/q4_0" for i in range(4)]

    def test_what_is_around_stays(self) -> None:
        assert self.names("q4_0-norot+first4+search")[0] == (
            "f16/f16-norot+first4+search+at0:q4_0/f16"
        )

    @pytest.mark.parametrize("setting", ["q4_0+skip0.-1", "turboquant_4bit_nc"])
    def test_skipped_layers_have_no_part(self, setting: str) -> None:
        """They would be f16 against f16, which is no measurement."""
        found = part_series(parse(setting), LAYERS, "layer")
        skipped = {0, 3} if "q4_0" in setting else {0, 1, 2, 3}
        assert {s.part.layer for s in found if s.part} == {0, 1, 2, 3} - skipped

    @pytest.mark.parametrize("setting", ["q4_0/q8_0+skip1", "nyb4", "fp8_e4m3/turboquant_v4"])
    def test_each_quantizes_one_side_of_one_layer(self, setting: str) -> None:
        for s in part_series(parse(setting), LAYERS, "layer"):
            assert s.part is not None
            for index in range(4):
                layer = Layer(index, 4, 2, 64, 64)
                sides = layer_stores(s.lane.setting, layer, sizing=True)
                for side, store in zip("KV", sides, strict=True):
                    quantized = any(codec.kind.quantized for _, codec in store.codecs)
                    assert quantized == ((index, side) == (s.part.layer, s.part.side))


@pytest.fixture(scope="module")
def parts(folder: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """Both ways to take q4_0 apart, in one folder."""
    out = tmp_path_factory.mktemp("run")
    with in_process(tmp_path_factory.mktemp("cache")):
        return {
            by: measure(request(folder, text, out, "q8_0", "q4_0", documents=2, by=by))
            for by in ("layer", "head")
        }


def parts_of(result: Result, setting: str = "q4_0/q4_0") -> list[Row]:
    return [r for r in result.measurement.rows if r.part is not None and r.part.of == setting]


class TestBy:
    def test_one_row_each(self, parts: dict[str, Result]) -> None:
        sites = list(itertools.product(range(2), "KV"))
        by_layer = parts_of(parts["layer"])
        assert [r.part for r in by_layer] == [Part("q4_0/q4_0", i, side) for i, side in sites]
        by_head = parts_of(parts["head"])
        assert [r.part for r in by_head] == [
            Part("q4_0/q4_0", i, side, head)
            for i, head, side in itertools.product(range(2), range(2), "KV")
        ]
        for result in parts.values():
            assert len(parts_of(result, "q8_0/q8_0")) == len(parts_of(result))
            assert all(r.role == "part" and r.status == "done" for r in parts_of(result))
            others = [r.role for r in result.measurement.rows if r.part is None]
            assert others == ["candidate", "candidate", "floor", "identity"]

    def test_a_part_costs_less_than_the_whole(self, parts: dict[str, Result]) -> None:
        whole = kld(row(parts["layer"], "q4_0"))
        layers = {(r.part.layer, r.part.side): kld(r) for r in parts_of(parts["layer"]) if r.part}
        assert all(0 < cost < whole for cost in layers.values())
        assert 0.5 * whole < sum(layers.values()) < 2 * whole
        for layer, side in layers:
            heads = [
                kld(r) for r in parts_of(parts["head"])
                if r.part and (r.part.layer, r.part.side) == (layer, side)
            ]  # fmt: skip
            assert len(heads) == 2
            assert all(0 < cost < layers[layer, side] for cost in heads)
            assert sum(heads) == pytest.approx(layers[layer, side], rel=0.5)

    def test_parts_are_no_candidates(self, parts: dict[str, Result]) -> None:
        for result in parts.values():
            assert all(r.verdict is None for r in parts_of(result))
            assert "+at" not in result.measurement.recommendation
            assert not [w for w in result.measurement.warnings if "+at" in w]

    def test_bytes(self, parts: dict[str, Result]) -> None:
        """One of four sides, or one of eight heads' sides, in 36 bytes a token instead of 128."""
        f16 = 2 * 2 * 2 * 128
        assert {r.bytes_per_token for r in parts_of(parts["layer"])} == {f16 - 2 * 92}
        assert {r.bytes_per_token for r in parts_of(parts["head"])} == {f16 - 92}
        assert {r.cache_bytes for r in parts_of(parts["head"])} == {CONTEXT * (f16 - 92)}

    def test_the_record_keeps_them(self, parts: dict[str, Result]) -> None:
        result = parts["head"]  # the later one
        stored = from_json((result.folder / "summary.json").read_text(encoding="utf-8"))
        assert stored == result.measurement

    def test_again_scores_nothing(
        self, parts: dict[str, Result], folder: Path, text: Path, asked: Asked
    ) -> None:
        out = parts["layer"].folder
        before = cells(out)
        wanted = request(folder, text, out, "q8_0", "q4_0", documents=2, by="layer")
        again = measure(wanted)
        assert scored(asked) == 0 and cells(out) == before
        assert again.measurement.rows == parts["layer"].measurement.rows

    def test_f16_has_no_parts(self, folder: Path, text: Path, tmp_path: Path, asked: Asked) -> None:
        result = measure(request(folder, text, tmp_path, "f16", "bf16", documents=1, by="layer"))
        assert [r.role for r in result.measurement.rows] == ["floor", "identity"]

    def test_with_a_second_model_both_are_taken_apart(
        self, folder: Path, gemma: Path, text: Path, tmp_path: Path, asked: Asked
    ) -> None:
        """Each in its own layers, against its own reference, in one request a chunk."""
        wanted = request(gemma, text, tmp_path, "q4_0", documents=1, by="layer", against=folder)
        found = measure(wanted).measurement.rows
        parts = [(r.model, r.reference, r.part.layer, r.part.side) for r in found if r.part]
        assert parts == [
            *(("a", "a", i, side) for i in range(3) for side in "KV"),
            *(("b", "b", i, side) for i in range(2) for side in "KV"),
        ]
        assert all(r.status == "done" and kld(r) > 0 for r in found if r.part)
        assert scored(asked) == 1
        # What a part costs does not depend on the other model.
        alone = request(folder, text, tmp_path / "alone", "q4_0", documents=1, by="layer")
        mine = [kld(r) for r in measure(alone).measurement.rows if r.part]
        assert [kld(r) for r in found if r.part and r.model == "b"] == pytest.approx(mine, rel=1e-3)

    def test_skipped_layers(self, folder: Path, text: Path, tmp_path: Path, asked: Asked) -> None:
        wanted = request(folder, text, tmp_path, "q4_0+skip0", documents=1, by="layer")
        result = measure(wanted)
        assert result.failed == []
        assert [r.part.layer for r in result.measurement.rows if r.part] == [1, 1]


Sites = dict[tuple[int, str], list[Rung]]


@st.composite
def ladders(draw: st.DrawFn) -> Sites:
    """Sites with types of rising size; costs may be anything."""
    found: Sites = {}
    for site in itertools.product(range(draw(st.integers(1, 4))), "KV"):
        sizes = sorted(draw(st.lists(st.integers(1, 40), min_size=1, max_size=4)))
        costs = draw(st.lists(st.floats(0, 10), min_size=len(sizes), max_size=len(sizes)))
        found[site] = [
            Rung(f"t{i}", float(size), cost)
            for i, (size, cost) in enumerate(zip(sizes, costs, strict=True))
        ]
    return found


def taken(sites: Sites, chosen: dict[tuple[int, str], str]) -> tuple[float, float]:
    """Bytes and cost of a choice."""
    rungs = [next(r for r in sites[site] if r.name == name) for site, name in chosen.items()]
    return sum(r.bytes for r in rungs), sum(r.cost for r in rungs)


class TestGreedy:
    @given(ladders(), st.integers(0, 200), st.integers(0, 60))
    @settings(max_examples=200, deadline=None)
    def test_properties(self, sites: Sites, extra: int, more: int) -> None:
        """One type a site, never over the bytes, and more bytes never cost more."""
        least = sum(rungs[0].bytes for rungs in sites.values())
        costs = []
        for limit in (least, least + extra, least + extra + more):
            chosen = greedy(sites, limit)
            assert list(chosen) == list(sites)
            spent, cost = taken(sites, chosen)
            assert spent <= limit
            costs.append(cost)
        assert costs[0] >= costs[1] - 1e-9 and costs[1] >= costs[2] - 1e-9

    @given(ladders())
    @settings(max_examples=100, deadline=None)
    def test_with_bytes_for_all_everything_is_at_its_best(self, sites: Sites) -> None:
        chosen = greedy(sites, sum(rungs[-1].bytes for rungs in sites.values()))
        best = sum(min(r.cost for r in rungs) for rungs in sites.values())
        assert taken(sites, chosen)[1] == pytest.approx(best)

    @given(ladders(), st.integers(1, 10))
    @settings(max_examples=50, deadline=None)
    def test_too_little(self, sites: Sites, less: int) -> None:
        least = sum(rungs[0].bytes for rungs in sites.values())
        with pytest.raises(NybbleError, match="below the smallest type") as caught:
            greedy(sites, least - less)
        assert caught.value.allowed == f"{least:,.0f} or more"

    def test_by_hand(self) -> None:
        """Ten bytes over the least: V of layer 0 gains 4 a byte, K of layer 0 only 1."""
        rungs = [Rung("a", 10, 50.0), Rung("b", 20, 40.0)]
        better = [Rung("a", 10, 50.0), Rung("b", 20, 10.0)]
        sites = {(0, "K"): rungs, (0, "V"): better}
        assert greedy(sites, 39) == {(0, "K"): "a", (0, "V"): "b"}
        assert greedy(sites, 40) == {(0, "K"): "b", (0, "V"): "b"}

    def test_a_weak_rung_is_jumped_over(self) -> None:
        sites = {(0, "K"): [Rung("a", 1, 10.0), Rung("b", 2, 9.9), Rung("c", 3, 1.0)]}
        assert greedy(sites, 3) == {(0, "K"): "c"}

    def test_types_of_one_size(self) -> None:
        """The better one costs nothing more."""
        sites = {(0, "K"): [Rung("q4_0", 18, 2.0), Rung("exl3_4", 18, 1.0)]}
        assert greedy(sites, 18) == {(0, "K"): "exl3_4"}


@st.composite
def choices(draw: st.DrawFn) -> dict[tuple[int, str], str]:
    layers = draw(st.sets(st.integers(0, 79), min_size=1, max_size=40))
    names = st.sampled_from(LADDER)
    return {(i, side): draw(names) for i in sorted(layers) for side in "KV"}


class TestAsSetting:
    @given(choices())
    @settings(max_examples=100, deadline=None)
    def test_round_trip(self, types: dict[tuple[int, str], str]) -> None:
        setting = as_setting(types)
        assert parse(str(setting)) == setting
        for layer in {i for i, _ in types}:
            assert setting.at_layer(layer, 80)[-1] == (
                None, types[layer, "K"], types[layer, "V"],
            )  # fmt: skip

    def test_the_most_frequent_pair_is_the_base(self) -> None:
        types = {(i, side): "q4_0" for i in range(5) for side in "KV"}
        assert as_setting(types) == make("q4_0", "q4_0")
        types[3, "V"] = types[4, "V"] = "q8_0"
        assert str(as_setting(types)) == "q4_0/q4_0+at3.4:q4_0/q8_0"


class TestBudget:
    @pytest.mark.parametrize(("kind", "bits"), [("folder", 4.5), ("gemma", 5.0)])
    def test_two_settings_of_equal_bytes(
        self, request_: Any, folder: Path, gemma: Path, text: Path, tmp_path: Path, asked: Asked,
        kind: str, bits: float,
    ) -> None:  # fmt: skip
        model = {"folder": folder, "gemma": gemma}[kind]
        wanted = dataclasses.replace(request_(model, text, tmp_path), budget=bits)
        result = measure(wanted)
        rows = result.measurement.rows
        proposal, uniform = (r for r in rows if r.role == "candidate")
        assert [r.role for r in rows] == ["candidate", "candidate", "floor", "identity"]
        assert uniform.setting == "exl3_4/exl3_4" and uniform.bits == 4.5
        assert "+at" in proposal.setting and proposal.bits <= bits
        # What is left over is less than the smallest step of the largest site.
        step = 4 * 32 * 2 / 32 * CONTEXT * (2 if kind == "folder" else 1)
        over = bits * uniform.cache_bytes / uniform.bits - proposal.cache_bytes
        assert 0 <= over < step
        assert kld(proposal) < kld(uniform)
        assert set(parse(proposal.setting).types) <= set(LADDER)
        before = cells(result.folder)
        asked.clear()
        again = measure(wanted)
        assert scored(asked) == 0 and cells(result.folder) == before
        assert again.measurement.rows == rows

    @pytest.fixture
    def request_(self) -> Any:
        """Default settings, which means the default ladder."""

        def make_request(model: Path, text: Path, out: Path, **changes: Any) -> MeasureRequest:
            return MeasureRequest(
                model=model, text=(text,), out=out, contexts=(CONTEXT,), documents=2, threads=1,
                **changes,
            )  # fmt: skip

        return make_request

    def test_a_ladder_of_ones_own(
        self, folder: Path, text: Path, tmp_path: Path, asked: Asked
    ) -> None:
        """q8_0 and q4_0 are defaults too; asked for, they are the ladder."""
        wanted = request(folder, text, tmp_path, "q8_0", "q4_0", documents=2, budget=6.5)
        found = [r for r in measure(wanted).measurement.rows if r.role == "candidate"]
        assert set(parse(found[0].setting).types) == {"q8_0", "q4_0"} and found[0].bits == 6.5
        assert found[1].setting == "q4_0/q4_0"
        (errors,) = [h for h in asked if h["op"] == "errors"]
        assert errors["settings"] == ["q4_0", "q8_0"]

    def test_f16_at_the_top_of_the_ladder(
        self, folder: Path, text: Path, tmp_path: Path, asked: Asked
    ) -> None:
        wanted = request(folder, text, tmp_path, "q8_0/f16", documents=1, budget=16.0)
        found = [r for r in measure(wanted).measurement.rows if r.role == "candidate"]
        assert [r.setting for r in found] == ["q8_0/q8_0"]  # all f16 is the reference itself

    @pytest.mark.parametrize(
        ("settings_", "bits", "what", "words"),
        [
            (("q8_0", "q4_0"), 4.0, "the budget is below the smallest type", "4.5 bits or more"),
            (("q4_0",), 5.0, "two or more types", "q4_0"),
            (("kivi4", "q4_0"), 5.0, "store K and V alike", "kivi_k4, kivi_v4"),
            (("nyb4", "q4_0"), 5.0, "store K and V alike", "nyb4"),
            (("bf16", "f16"), 16.0, "two or more types", "bf16, f16"),
        ],
    )
    def test_refused(
        self, folder: Path, text: Path, tmp_path: Path, asked: Asked,
        settings_: tuple[str, ...], bits: float, what: str, words: str,
    ) -> None:  # fmt: skip
        with pytest.raises(NybbleError, match=what) as caught:
            measure(request(folder, text, tmp_path / "run", *settings_, documents=1, budget=bits))
        assert words in str(caught.value) and scored(asked) == 0
        assert caught.value.seen and caught.value.allowed
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("bits", [0.0, -1.0, 16.5, float("nan")])
    def test_out_of_range(self, bits: float) -> None:
        with pytest.raises(NybbleError, match="--budget is in bits"):
            MeasureRequest(budget=bits)

    def test_two_models(self) -> None:
        with pytest.raises(NybbleError, match="--budget is about one model") as caught:
            MeasureRequest(budget=4.5, against=Path("b"))
        assert caught.value.seen == "--against b"

    def test_a_layer_that_fails(
        self, folder: Path, text: Path, tmp_path: Path, asked: Asked,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(run.CellRunner, "rows", lambda *args: None)
        wanted = request(folder, text, tmp_path, "q8_0", "q4_0", documents=1, budget=6.5)
        with pytest.raises(NybbleError, match="no budget can be spread") as caught:
            measure(wanted)
        assert "+at0:q4_0/f16" in str(caught.value.seen)


def test_a_setting_longer_than_a_file_name(
    folder: Path, text: Path, tmp_path: Path, asked: Asked
) -> None:
    """A budget over many layers names many of them."""
    deep = write_folder(tmp_path / "deep", num_hidden_layers=24)
    parts = "".join(
        f"+at{i}.{i + 12}:{k}/{v}"
        for i, (k, v) in enumerate(itertools.islice(itertools.product(LADDER, LADDER), 12))
    )
    setting = f"exl3_4/exl3_4{parts}"
    assert len(setting) > 255
    result = measure(request(deep, text, tmp_path / "run", setting, documents=1))
    assert result.failed == [] and result.measurement.rows[0].setting == setting
    assert all(len(name) < 120 for name in cells(result.folder))
