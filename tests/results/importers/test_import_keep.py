"""Imports in a base: recognised, kept once, apart from nybble's own numbers; the command."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, example, settings
from hypothesis import given as drawn
from hypothesis import strategies as st
from import_sources import LOGS, given, lm_eval_text, source

from nybble.cli.results_import import import_
from nybble.errors import NybbleError
from nybble.results.base.external import EXTERNAL_SCHEMA_VERSION, Imported
from nybble.results.importers import source as sources
from nybble.results.importers.keep import import_file
from nybble.results.importers.registry import IMPORTERS, importer_of
from nybble.results.records import read_record

KLD = LOGS / "kld.log"


def test_kept_once(tmp_path: Path) -> None:
    first = import_file(KLD, tmp_path, given())
    before = first.path.stat()
    again = import_file(KLD, tmp_path, given())
    assert (first.state, again.state) == ("new", "unchanged") and again.record == first.record
    assert (again.path.stat().st_mtime_ns, again.path.stat().st_ino) == (
        before.st_mtime_ns, before.st_ino)  # fmt: skip
    read = read_record(first.path.read_text("utf-8"), Imported, EXTERNAL_SCHEMA_VERSION, "import")
    assert read == first.record and read.source == "kld.log" and read.created
    changed = import_file(KLD, tmp_path, given(model="another name"))
    assert changed.state == "changed" and changed.path == first.path
    other = import_file(KLD, tmp_path, given(harness="ik_llama-perplexity"))
    assert other.state == "new" and other.path.name.startswith("ik_llama-perplexity-")
    changed.path.write_text("damaged")
    assert import_file(KLD, tmp_path, given()).state == "new"
    assert {p.suffix for p in (tmp_path / "imported").iterdir()} == {".json"}


@pytest.mark.parametrize("name", ["nybble", "Nybble", "", "../x", "a b", "x" * 41, ".hidden"])
def test_names_of_harnesses(tmp_path: Path, name: str) -> None:
    with pytest.raises(NybbleError):
        import_file(KLD, tmp_path, given(harness=name or "/"))
    assert not (tmp_path / "imported").exists()


def test_recognised_by_content(tmp_path: Path) -> None:
    texts = {"llama-perplexity": KLD.read_text("utf-8"), "lm-eval": lm_eval_text(),
             "csv": "model,kv,ppl\nA,q8_0,1\n"}  # fmt: skip
    assert set(texts) == set(IMPORTERS)
    for name, text in texts.items():
        assert importer_of(source(tmp_path, text)).name == name
    with pytest.raises(NybbleError, match="no known format fits"):
        importer_of(source(tmp_path, "hello\n"))
    both = "model,kv\nFinal estimate: PPL = 1\n"
    with pytest.raises(NybbleError, match="several formats fit"):
        importer_of(source(tmp_path, both))
    assert importer_of(source(tmp_path, both), "csv").name == "csv"
    with pytest.raises(NybbleError, match="did you mean lm-eval"):
        importer_of(source(tmp_path, both), "lm_eval")
    with pytest.raises(NybbleError, match="samples, not its summary"):
        importer_of(source(tmp_path, '{"doc_id": 0, "target": "x"}\n', "samples_x.jsonl"))


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NybbleError, match="No such file"):
        sources.read_source(tmp_path / "none")
    with pytest.raises(NybbleError, match="Is a directory"):
        sources.read_source(tmp_path)
    with pytest.raises(NybbleError, match="not text in UTF-8"):
        source(tmp_path, "Mean \xb1".encode("latin-1"))
    monkeypatch.setattr(sources, "MAX_BYTES", 100)
    with pytest.raises(NybbleError, match="too large"):
        sources.read_source(KLD)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_base_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(NybbleError, match="cannot write to the result base"):
        import_file(KLD, tmp_path, given())


def test_command(tmp_path: Path) -> None:
    def run(*args: str) -> tuple[int, str, str]:
        words = [*args, "--base", str(tmp_path)]
        done = CliRunner().invoke(import_, words, standalone_mode=False)
        if isinstance(done.exception, NybbleError):
            return 1, done.stdout, str(done.exception)
        assert done.exception is None, done.exception
        return done.return_value, done.stdout, done.stderr

    code, out, err = run(str(KLD))
    assert code == 0 and err == "" and out.startswith("new: ")
    assert "34 numbers of llama-perplexity" in out and "q8_0/q4_0" in out
    code, out, err = run(str(KLD), str(tmp_path / "none.log"), str(LOGS / "hs.log"), "--model", "m")
    assert code == 1 and "none.log: No such file" in err and out.count("\n") == 2
    code, out, _ = run(str(KLD), "--json")
    (kept,) = json.loads(out)
    assert code == 0 and kept["format"] == "llama-perplexity" and len(kept["record"]["rows"]) == 34
    assert "unknown KV type" in run(str(KLD), "--kv", "q9")[2]


_PIECES = st.sampled_from([
    "Final estimate: PPL = ", "Mean    KLD: ", "±", "+/-", "nan", "-inf", "1e999", "9" * 400,
    "\t", "\n", "hellaswag_score : selecting 1 first tasks.\n", "1\t3%", "K (q9): 1 MiB, V (f16):",
    "K (q8_0): 1.0 MiB, V (f16): 1 MiB", "Same top p: ", "%", "general.name = ", "Δp", "[", "{",
    '{"results": {"t": {"a,none": ', "}}}", '"config"', "model,kv,ppl\n", "a,q8_0,", ",", '"',
    "\x00", "\x1b[", "\ud7ff", "Final Winogrande score(", " over 3 chunks, n_ctx=",
])  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(text="Mean    KLD: 1e-3000 ± 9")
@drawn(text=st.lists(_PIECES | st.text(max_size=8), max_size=12).map("".join))
def test_whatever_is_in_a_file_it_is_read_or_refused(
    text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    read = source(folder, text.encode("utf-8", "replace"), "fuzz")
    told = given(model="m", harness="h", address="a")
    for importer in IMPORTERS.values():
        try:
            found = importer.read(read, told)
        except NybbleError:
            continue
        for row in found.rows:
            json.dumps([row.value, row.stderr], allow_nan=False)
