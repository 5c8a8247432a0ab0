"""`nybble results compare` and `gate` as a user calls them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest
from click.testing import CliRunner, Result

from nybble.cli.results_compare import compare
from nybble.cli.results_gate import gate
from nybble.errors import NybbleError
from run_folders import write_run

EVIL = '<script>alert("x")</script> | =1+1 \x1b[31m ]]>'
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli-compare")
    write_run(root / "a", model=EVIL)
    write_run(root / "b", model=EVIL, settings={"q8_0/q8_0": 8e-4, "q8_0/q4_0": 0.03})
    write_run(root / "text", model=EVIL, seed=4, settings={"q8_0/q8_0": 8e-4})
    return root


def call(command: click.Command, args: Sequence[object]) -> Result:
    """Run a command; an error that the user would read is raised."""
    done = CliRunner().invoke(command, [*map(str, args)], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done


def test_tables_name_both_sides_and_verdicts(base: Path) -> None:
    out = call(compare, [base / "a", base / "b", "-q"]).stdout
    assert f"A: {base / 'a'}" in out and f"B: {base / 'b'}" in out
    assert "A is better" in out and "same within" in out
    assert "\x1b" not in out


def test_json_csv_and_markdown_say_the_same(base: Path) -> None:
    args = [base / "a", base / "b", "--kv", "q8_0/q8_0,q8_0/q4_0", "--context", 1024]
    record = json.loads(call(compare, [*args, "--json"]).stdout)
    lines = list(csv.DictReader(io.StringIO(call(compare, [*args, "--csv"]).stdout)))
    text = call(compare, [*args, "--markdown"]).stdout
    assert [p["a"]["setting"] for p in record["pairs"]] == ["q8_0/q8_0", "q8_0/q4_0"]
    for pair, line in zip(record["pairs"], lines, strict=True):
        assert (
            float(line["mean_kld_difference"]) == pair["metrics"]["mean_kld"]["difference"]["value"]
        )
        assert line["verdict"] == pair["verdict"]
        assert pair["verdict"] in text
    assert "<script>" not in text and "\x1b" not in text
    assert call(compare, [*args, "--json"]).stdout == call(compare, [*args, "--json"]).stdout


def test_unpaired_numbers_are_marked(base: Path) -> None:
    out = call(compare, [base / "a", base / "text", "-q"]).stdout
    assert "unpaired" in out and "is better" not in out


def test_gate_exit_codes_and_forms(base: Path, tmp_path: Path) -> None:
    rules = tmp_path / "policy.toml"
    rules.write_text('[[rule]]\nname = "a & b"\nmetric = "mean_kld"\nmax = 0.05\n')
    good = call(gate, [base / "b", "--policy", rules, "-q"])
    assert good.return_value == 0 and "GO: 4 checks" in good.stdout
    bad = call(gate, [base, "--policy", rules, "--markdown", "--junit", tmp_path / "g.xml"])
    assert bad.return_value == 1
    assert bad.stdout.startswith("**NO-GO: 1 of ") and "<script>" not in bad.stdout
    suite = ElementTree.parse(tmp_path / "g.xml").getroot()
    record = json.loads(call(gate, [base, "--policy", rules, "--json"]).stdout)
    assert suite.get("failures") == "1" == str(sum(not c["passed"] for c in record["checks"]))
    (failure,) = suite.findall("testcase/failure")
    assert failure.get("type") == "NO-GO" and "at most 0.05" in (failure.text or "")
    assert {c.get("classname") for c in suite.findall("testcase")} > {"a & b"}


def test_gate_against_a_baseline(base: Path, tmp_path: Path) -> None:
    rules = tmp_path / "policy.toml"
    rules.write_text('[[rule]]\nmetric = "mean_kld"\nmax_increase = 0.001\n')
    with pytest.raises(NybbleError, match="needs a baseline"):
        call(gate, [base / "b", "--policy", rules])
    done = call(gate, [base / "b", "--policy", rules, "--against", base / "a", "--json"])
    checks = [c for c in json.loads(done.stdout)["checks"] if not c["rule"].startswith("guard")]
    assert [c["state"] for c in checks] == ["GO", "NO-GO"]
    assert done.return_value == 1
    apart = call(gate, [base / "text", "--policy", rules, "--against", base / "a", "--json"])
    checks = json.loads(apart.stdout)["checks"]
    assert (checks[0]["state"], apart.return_value) == ("INCONCLUSIVE", 1)


def test_the_policy_of_the_manual_is_read(tmp_path: Path) -> None:
    from nybble.results.policy import load_policy

    page = (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")
    (tmp_path / "policy.toml").write_text(page.split("```toml\n")[1].split("```")[0])
    assert [r.kind for r in load_policy(tmp_path / "policy.toml").rules] == [
        "max", "min", "max_increase", "verdict"
    ]  # fmt: skip
