"""A plan and its cost as text: what stands in the tables, what is marked, what is said once."""

from __future__ import annotations

import csv
import dataclasses
import io
from typing import Any

import pytest
from test_plan_plots import comparison, fit, plan

from nybble.report import cost_table, plan_table
from nybble.results.plans import BreakEvenRecord, Choice, Fit, Plan, Quality
from nybble.results.records import Estimate


def quality(**more: Any) -> Quality:
    fields: dict[str, Any] = {
        "mean_kld": Estimate(0.02, 0.01, 0.04), "same_top": None, "verdict": "safe",
        "model": "Model", "same_model": True, "context": 1024, "source": "runs/a",
    } | more  # fmt: skip
    return Quality(**fields)


def shown(made: Plan, engine: str = "llama.cpp", width: int = 120) -> str:
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=width).print(plan_table.rich_table(made, engine))
    return out.getvalue()


def of(fits: list[Fit]) -> Plan:
    """A plan of these rows."""
    return dataclasses.replace(plan(), fits=tuple(fits))


class TestTable:
    def test_a_row_holds_its_fits_numbers(self) -> None:
        made = of([fit("f16/f16"), fit("q4_0/q4_0")])
        header, lines = plan_table.rows(made, "llama.cpp")
        assert header[0] == "KV type" and [x[0] for x in lines] == ["f16/f16", "q4_0/q4_0"]
        for line, found in zip(lines, made.fits, strict=True):
            row = dict(zip(header, line, strict=True))
            assert row["bytes/\ntoken"] == f"{found.bytes_per_token:,.0f}"
            assert row["largest\ncontext"].rstrip("+") == f"{found.largest_context:,}"
            over = {c: n > (made.budget or 0) for c, n in found.memory.items()}
            for context, yes in over.items():
                title = f"GiB at\n{plan_table.tokens(context)}"
                assert title not in row or row[title].startswith(">") == yes

    @pytest.mark.parametrize("width", [100, 120])
    def test_fits_a_terminal_whole(self, width: int) -> None:
        text = shown(of([fit("f16/f16"), fit("q4_0/q4_0")]), width=width)
        assert "…" not in text and max(map(len, text.splitlines())) <= width

    def test_a_long_name_for_both_sides_is_written_once(self) -> None:
        assert plan_table.short("int4_per_token_head/int4_per_token_head") == "int4_per_token_head"
        assert plan_table.short("q4_0/q4_0") == "q4_0/q4_0"
        assert plan_table.short("q8_0/q4_0") == "q8_0/q4_0"

    @pytest.mark.parametrize(
        ("more", "mark"),
        [({}, ""), ({"same_model": False}, " ~"), ({"simulated": True}, " *"),
         ({"same_model": False, "simulated": True}, " *~")],
    )  # fmt: skip
    def test_where_a_quality_is_from(self, more: dict[str, Any], mark: str) -> None:
        found = dataclasses.replace(fit("q4_0/q4_0"), quality=quality(**more))
        assert plan_table.kld(found) == f"0.020 [0.010, 0.040]{mark}"
        notes = plan_table.notes(of([found]), ["llama.cpp"])
        assert any(n.startswith("~ measured on Model") for n in notes) == ("~" in mark)
        assert any(n.startswith("* simulated") for n in notes) == ("*" in mark)

    def test_sixteen_bits_lose_nothing_and_the_unmeasured_is_open(self) -> None:
        measured = dataclasses.replace(fit("q4_0/q4_0"), quality=quality())
        made = of([fit("f16/f16"), measured, fit("q8_0/q8_0")])
        made = dataclasses.replace(
            made, fits=(*made.fits[:2], dataclasses.replace(made.fits[2], quality=None))
        )
        assert [plan_table.kld(f) for f in made.fits][::2] == ["0", "–"]

    def test_a_note_of_some_settings_names_them(self) -> None:
        fits = [dataclasses.replace(fit(s), notes=n) for s, n in
                (("f16/f16", ("all",)), ("q8_0/q8_0", ("all", "some")))]  # fmt: skip
        notes = plan_table.notes(of(fits), ["llama.cpp"])
        assert "llama.cpp: all" in notes and "llama.cpp, q8_0/q8_0: some" in notes

    def test_refused_ones_are_no_rows_and_say_why_once(self) -> None:
        gone = [Fit("vllm", s, refused="no such type") for s in ("q4_0/q4_0", "q5_1/q5_1")]
        made = of([fit("f16/f16"), *gone])
        assert len(plan_table.rows(made, "llama.cpp")[1]) == 1
        assert plan_table.refusals(made) == ["vllm q4_0/q4_0, q5_1/q5_1: no such type"]
        assert plan_table.other_engines(made, ["llama.cpp"]) == []

    def test_engines_without_a_table(self) -> None:
        made = of([fit("f16/f16"), fit("q8_0/q8_0", engine="vllm")])
        ((engine, text),) = plan_table.other_engines(made, ["llama.cpp"])
        assert engine == "vllm" and text.startswith("q8_0/q8_0 ")

    def test_markdown_and_csv(self) -> None:
        made = of([fit("f16/f16"), fit("q4_0/q4_0")])
        made = dataclasses.replace(made, choice=Choice("q4_0/q4_0", "llama.cpp", "it fits", ()))
        text = plan_table.markdown(made, ["llama.cpp"])
        assert "| q4_0/q4_0 | 4.5 |" in text and text.endswith("it fits")
        rows = list(csv.DictReader(io.StringIO(plan_table.csv_text(made))))
        assert len(rows) == 2 * len(made.contexts)
        assert {int(r["bytes"]) for r in rows} == {n for f in made.fits for n in f.memory.values()}

    @pytest.mark.parametrize(
        ("n", "text"),
        [(8192, "8K"), (131_072, "128K"), (1 << 20, "1M"), (10_485_760, "10M"), (30_700, "30,700"),
         (1000, "1,000")],
    )  # fmt: skip
    def test_tokens(self, n: int, text: str) -> None:
        assert plan_table.tokens(n) == text

    @pytest.mark.parametrize(
        ("value", "text"),
        [((19.2, 48.9), "19-49"), ((0, 0), "0"), (None, "–"), ((2, 2), "2"),
         ((1450, 3652), "1,400-3,700"),
         ((0.034, 0.21), "0.034-0.21")],
    )  # fmt: skip
    def test_span(self, value: tuple[float, float] | None, text: str) -> None:
        assert plan_table.span(value) == text


class TestCost:
    def test_every_option_once_and_refused_ones_apart(self) -> None:
        found = comparison()
        kept = [r for r in found.costs if not r.refused]
        text = cost_table.markdown(found)
        assert text.count("\n| ") == len(kept) + 1
        rows = list(csv.DictReader(io.StringIO(cost_table.csv_text(found))))
        assert len(rows) == len(found.costs)
        assert len(cost_table.refusals(found)) == len(found.costs) - len(kept)

    @pytest.mark.parametrize(
        ("value", "unit", "reached", "text"),
        [
            ((3.0, 8.0), "months", "yes", "after 3-8 months, within its life"),
            ((3.0, float("inf")), "months", "unclear",
             "after 3 months at the earliest, or never, which may be past its life"),
            ((float("inf"),) * 2, "months", "no", "never"),
            ((5.0, 9.0), "million answer tokens a month", "no",
             "from 5-9 million answer tokens a month, more than it can give"),
        ],
    )  # fmt: skip
    def test_break_even(
        self, value: tuple[float, float], unit: str, reached: str, text: str
    ) -> None:
        line = cost_table.break_even(BreakEvenRecord("a", "b", unit, value, reached))
        assert line == f"owning a is cheaper than b: {text}"
