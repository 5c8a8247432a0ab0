"""`nybble cost` as a user runs it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_cli_plan import refused as refused
from test_cli_plan import said as said

Run = Callable[..., Any]
ON = ("--on", "rtx-4090:q8_0/q4_0", "--on", "8xh100-sxm:f16@vllm")
MODEL = ("cost", "gemma-4-31b-qat")


class TestTable:
    def test_a_card_of_24_gb_against_a_node(self, said: Run) -> None:
        code, out, err = said(*MODEL, *ON, "--users", 2, "--api", "gemma-4-31b", "--requests", 30)
        assert (code, err) == (0, "")
        for name in ("rtx-4090:q8_0/q4_0", "8xh100-sxm:f16@vllm", "gemma-4-31b"):
            assert name in out
        for how in ("owned", "rented", "api"):
            assert re.search(rf"\b{how}\b", out)
        assert "owning rtx-4090:q8_0/q4_0 is cheaper than gemma-4-31b by API" in out

    def test_cheapest_first(self, nybble: Run) -> None:
        record = nybble(*MODEL, *ON, "--json").record
        months = [sum(c["month"]) for c in record["costs"]]
        assert months == sorted(months) and len(months) == 4
        for cost in record["costs"]:
            assert 0 < cost["month"][0] <= cost["month"][1]
            assert cost["assumptions"] and cost["lines"]

    def test_a_price_given_is_used(self, nybble: Run) -> None:
        options = ("--on", "rtx-4090:q4_0", "--json", "--set", "life_years=2",
                   "--set", "electricity=0", "--set", "host_price=0")  # fmt: skip
        for price in (1200, 2400):
            record = nybble(*MODEL, *options, "--price", price).record
            own = next(c for c in record["costs"] if c["how"] == "owned")
            assert own["month"] == pytest.approx([price / 24, price / 24])

    def test_explain(self, said: Run) -> None:
        _, out, _ = said(*MODEL, *ON, "--explain", "--set", "pue=1.2..1.3")
        assert "assumptions:" in out and "(given)" in out and "paid back" in out
        assert "1.2 to 1.3" in out

    def test_csv_and_markdown(self, nybble: Run) -> None:
        rows = list(csv.DictReader(io.StringIO(nybble(*MODEL, *ON, "--csv").out)))
        assert {r["how"] for r in rows} == {"owned", "rented"}
        assert all(float(r["month_low"]) <= float(r["month_high"]) for r in rows)
        assert nybble(*MODEL, *ON, "--markdown").out.count("\n| ") == 5

    def test_picture(self, said: Run, tmp_path: Path) -> None:
        path = tmp_path / "cost.svg"
        code, _, err = said(*MODEL, *ON, "--picture", path)
        assert code == 0 and str(path) in err and "USD" in path.read_text()

    def test_what_cannot_serve_it_says_why(self, said: Run) -> None:
        code, out, _ = said(*MODEL, *ON, "--on", "rtx-3060:q4_0")
        assert code == 0 and "cannot serve it: rtx-3060:q4_0: one request does not fit" in out


class TestRefused:
    @pytest.mark.parametrize(
        ("words", "said_words"),
        [
            (("--on", "rtx-4091"), ("unknown card", "rtx-4090")),
            (("--on", "rtx-4090:q9"), ("unknown KV type",)),
            (("--on", "rtx-4090@vlm"), ("unknown engine", "vllm")),
            (("--on", "rtx-3060:f16"), ("none of these can serve", "nybble plan")),
            (("--users", "0"), ("users", "above 0")),
            (("--in", "-1"), ("prompt tokens", "-1")),
            (("--out", "0"), ("answer",)),
            (("--hours", "25"), ("24 hours",)),
            (("--utilisation", "1.5"), ("utilisation",)),
            (("--requests", "0"), ("requests an hour",)),
            (("--context", "100"), ("longer than the context",)),
            (("--price", "-5"), ("price",)),
            (("--set", "power=3"), ("--set", "electricity")),
            (("--set", "electricity=cheap"), ("..",)),
            (("--set", "electricity=0.3..0.1"), ("low to high",)),
            (("--api", "gpt-9"), ("no price",)),
            (("--api-price", "1"), ("--api-price 0.12,0.35",)),
            (("--api", "gemma-4-31b"), ("requests an hour",)),
        ],
    )
    def test_values(
        self, refused: Run, words: tuple[str, ...], said_words: tuple[str, ...]
    ) -> None:
        err = refused(*MODEL, *words)
        for word in said_words:
            assert word in err, err
