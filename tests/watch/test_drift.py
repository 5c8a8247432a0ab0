"""Newer releases, what they may make outdated, and the patch."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from feed_samples import NOTES, atom, index
from hypothesis import given
from hypothesis import strategies as st

from nybble.engines.known.base import Engine
from nybble.engines.known.registry import engine as known
from nybble.errors import NybbleError
from nybble.watch import Addresses, EngineDrift, Limits, Watch, look
from nybble.watch.mentions import issues
from nybble.watch.patch import DataFile, data_file, diff

NOW = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)
FEED = "/o/made/releases.atom"
Make = Callable[..., Engine]


@pytest.fixture
def see(web: Any, tmp_path: Path) -> Any:
    """Looks at one engine on the test's server."""

    def once(engine: Engine, **options: Any) -> EngineDrift:
        found = look([engine], Addresses(web.index_url, web.releases_url), now=NOW,
                     folder=tmp_path / "watch", limits=Limits(total=10), **options)  # fmt: skip
        return found.engines[0]

    return once


def _serve(web: Any, package: tuple[str, ...], *entries: tuple[str, str, str]) -> None:
    web.answer("/pypi/made/json", index("made", *package))
    web.answer("/pypi/made-client/json", index("made-client", "7.0rc1", "6.1"))
    web.answer(FEED, atom("o/made", *entries))


class TestVersions:
    def test_nothing_newer(self, web: Any, see: Any, make_engine: Make) -> None:
        _serve(web, ("0.32.0", "0.33.0"), ("v0.33.0", "2026-11-01", NOTES))
        found = see(make_engine())
        assert not found.drifted and (found.newest, found.published) == ("0.33.0", "2026-01-02")
        assert (found.releases, found.lines, found.outdated, found.to_read) == ((), (), (), ())
        assert found.patch == "" and found.others == (("made-client", "6.1"),)

    def test_newer(self, web: Any, see: Any, make_engine: Make) -> None:
        _serve(web, ("0.33.0", "0.34.0"), ("v0.34.1", "2026-11-20", ""),
               ("v0.34.0", "2026-11-10", NOTES), ("gateway-v9.9", "2026-11-09", NOTES),
               ("b99999", "2026-11-09", NOTES), ("v0.33.0", "2026-11-01", "KV cache dtype"),
               )  # fmt: skip
        found = see(make_engine())
        assert found.drifted and (found.newest, found.published) == ("0.34.1", "2026-11-20")
        assert [(r.version, r.sources, r.has_notes) for r in found.releases] == [
            ("v0.34.1", ("releases",), False),
            ("v0.34.0", ("index", "releases"), True),
        ]
        assert {line.release for line in found.lines} == {"v0.34.0"}
        assert "without notes in the feed: 0.34.1" in found.to_read
        assert f"notes of v0.34.0: {found.releases[1].url}" in found.to_read

    def test_candidates_are_shown_but_no_drift(self, web: Any, see: Any, make_engine: Make) -> None:
        _serve(web, ("0.33.0", "0.34.0rc1", "0.35.dev0"), ("v0.34.0-rc2", "2026-11-20", NOTES))
        found = see(make_engine())
        assert not found.drifted and found.newest == "0.33.0" and found.patch == ""
        assert [(r.version, r.prerelease) for r in found.releases] == [
            ("0.35.dev0", True), ("v0.34.0-rc2", True), ("0.34.0rc1", True)]  # fmt: skip
        assert found.lines

    def test_candidates_count_where_one_was_read(
        self, web: Any, see: Any, make_engine: Make
    ) -> None:
        _serve(web, ("1.3.0rc27", "1.3.0rc28"))
        found = see(make_engine("1.3.0rc27"))
        assert found.drifted and found.newest == "1.3.0rc28"

    def test_builds(self, web: Any, see: Any, make_engine: Make) -> None:
        """As llama.cpp: tags are builds, and one package carries them in its last number."""
        _serve(web, ("0.3.36", "2026.11.11900"), ("b11901", "2026-11-27", NOTES),
               ("v9.9.9", "2026-11-27", NOTES))  # fmt: skip
        found = see(make_engine("b11549"))
        assert [r.version for r in found.releases] == ["b11901", "b11900"]
        assert found.newest == "b11901" and '+    version = "b11901"' in found.patch
        assert "the feed begins at b11901: notes of the releases between b11549 and that were " \
            "not seen" in found.to_read  # fmt: skip

    def test_a_failed_feed_is_told(self, web: Any, see: Any, make_engine: Make) -> None:
        _serve(web, ("0.34.0",))
        del web.routes[FEED]
        found = see(make_engine())
        assert found.drifted and [s.state for s in found.sources] == ["fetched"] * 2 + ["missing"]
        assert "the release feed of o/made was not seen: no notes were searched" in found.to_read

    def test_nothing_known(self, web: Any, see: Any, make_engine: Make) -> None:
        with pytest.raises(NybbleError, match="no release of any engine") as caught:
            see(make_engine())
        assert "HTTP 404" in str(caught.value)

    def test_offline_after_a_look(self, web: Any, see: Any, make_engine: Make) -> None:
        _serve(web, ("0.34.0",), ("v0.34.0", "2026-11-20", NOTES))
        online, offline = see(make_engine()), see(make_engine(), offline=True)
        assert {s.state for s in offline.sources} == {"cached"}
        assert (offline.releases, offline.lines) == (online.releases, online.lines)

    def test_a_version_that_does_not_compare(self, web: Any, see: Any, make_engine: Make) -> None:
        _serve(web, ("0.34.0",))
        with pytest.raises(NybbleError, match="not a version"):
            see(make_engine("main"))


class TestOutdated:
    def test_names_and_issues(self, web: Any, see: Any, make_engine: Make) -> None:
        _serve(web, ("0.34.0",), ("v0.34.0", "2026-11-20", NOTES))
        found = {(o.kind, o.entry, o.mention) for o in see(make_engine()).outdated}
        assert found == {("choice", "nvfp4", "nvfp4"), ("trap", "nvfp4 is slow", "o/made#47684")}

    def test_short_names_count_in_sentences_on_kv_only(
        self, web: Any, see: Any, make_engine: Make
    ) -> None:
        notes = "<li>nvfp4 weights load.</li><li>int4_per_token_head works</li><li>auto kv</li>"
        _serve(web, ("0.34.0",), ("v0.34.0", "2026-11-20", notes))
        assert [o.entry for o in see(make_engine()).outdated] == ["int4_per_token_head"]

    def test_an_issue_of_a_value_source(self, web: Any, see: Any, make_engine: Make) -> None:
        _serve(web, ("0.34.0",), ("v0.34.0", "2026-11-20", "Revert #59001"))
        found = see(make_engine())
        assert [(o.kind, o.entry) for o in found.outdated] == [("choice", "nvfp4")]
        assert any("value nvfp4: v0.34.0 mentions o/made#59001" in t for t in found.to_read)

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("o/made#1, #2; PR #3", (("o/made", "1"), ("o/made", "2"), ("o/made", "3"))),
            ("#7 and A/B.c#8, #9", (("own/repo", "7"), ("a/b.c", "8"), ("a/b.c", "9"))),
            ("https://github.com/O/Made/pull/5", (("o/made", "5"),)),
            ("C# 11, #, #x, &#39; is &#39", (("own/repo", "39"),)),
            ("", ()),
        ],
    )
    def test_issue_numbers(self, text: str, found: tuple[tuple[str, str], ...]) -> None:
        assert issues(text, "own/repo") == found

    @given(st.text(max_size=100))
    def test_any_text(self, text: str) -> None:
        assert all(number.isdigit() for _, number in issues(text, "own/repo"))


class TestPatch:
    def test_it_applies_and_moves_two_lines_only(
        self, web: Any, see: Any, make_engine: Make, tmp_path: Path
    ) -> None:
        _serve(web, ("0.34.0",), ("v0.34.0", "2026-11-20", NOTES))
        engine = make_engine()
        text = see(engine).patch
        checkout = tmp_path / "checkout"
        path = checkout / "src" / "nybble_made" / "made.py"
        path.parent.mkdir(parents=True)
        before = data_file(engine).text
        path.write_text(before, encoding="utf-8")
        subprocess.run(["git", "init", "-q"], cwd=checkout, check=True)
        subprocess.run(["git", "apply", "-"], cwd=checkout, input=text.encode(), check=True)
        after = path.read_text(encoding="utf-8")
        changed = [(a, b) for a, b in zip(before.splitlines(), after.splitlines(), strict=True)
                   if a != b]  # fmt: skip
        assert changed == [
            ('    version = "0.33.0"', '    version = "0.34.0"'),
            ('    read_on = "2026-11-01"', '    read_on = "2026-11-28"'),
        ]
        assert "KV" not in text.replace("KVChoice", "")

    def test_of_a_real_engine(self) -> None:
        file = data_file(known("llama.cpp"))
        assert file.name == "src/nybble/engines/known/llamacpp.py"
        made = diff(file, "LlamaCpp", {"version": "b99999"})
        assert made.count("\n-") == 1 and '+    version = "b99999"\n' in made

    def test_nothing_to_change(self) -> None:
        assert diff(DataFile("x.py", 'class A:\n    version = "1"\n'), "A", {"version": "1"}) == ""

    @pytest.mark.parametrize("value", ['1"\nimport os', "", "-1", "x" * 65, "1 2", "é"])
    def test_a_value_that_is_no_version_is_refused(self, value: str) -> None:
        with pytest.raises(NybbleError, match="not a value"):
            diff(DataFile("x.py", 'class A:\n    version = "1"\n'), "A", {"version": value})

    @pytest.mark.parametrize(
        "text",
        ["class B:\n    version = '1'\n", "class A:\n    version = make()\n", "class A: (\n",
         "version = '1'\n", "class A:\n    version = ('1'\n '2')\n", ""],
    )  # fmt: skip
    def test_a_file_without_plain_values_is_refused(self, text: str) -> None:
        with pytest.raises(NybbleError, match="x.py"):
            diff(DataFile("x.py", text), "A", {"version": "2"})

    def test_bytes_of_utf8_are_counted(self) -> None:
        text = 'class A:\n    name: str = "–"; version: str = "1"  # –\n'
        made = diff(DataFile("x.py", text), "A", {"version": "2"})
        assert '+    name: str = "–"; version: str = "2"  # –\n' in made

    def test_an_engine_without_plain_values_says_so(
        self, web: Any, see: Any, make_engine: Make
    ) -> None:
        _serve(web, ("0.34.0",))
        source = """from nybble.engines.known.base import Engine
class Made(Engine):
    name = "made"; version = "".join("0.33.0"); read_on = "2026-11-01"; packages = ("made",)
    choices = (); flags = ""
    def launch(self, asked): ...
"""
        found = see(make_engine(source=source))
        assert found.drifted and found.patch == ""
        assert any(text.startswith("no patch could be made") for text in found.to_read)


class TestRecord:
    def test_it_is_json(self, web: Any, see: Any, make_engine: Make, tmp_path: Path) -> None:
        _serve(web, ("0.34.0",), ("v0.34.0", "2026-11-20", NOTES))
        drift = see(make_engine())
        record = Watch("2026-11-28T12:00:00Z", (drift,))
        found = json.loads(json.dumps(record.as_dict()))
        assert found["drifted"] is True and found["schema_version"] == 1
        (engine,) = found["engines"]
        assert engine["drifted"] is True and engine["others"] == {"made-client": "6.1"}
        assert engine["lines"][0]["topics"] and engine["patch"] == record.patch

    def test_addresses_are_asked_once(self, web: Any, make_engine: Make, tmp_path: Path) -> None:
        _serve(web, ("0.34.0",))
        engine = make_engine()
        look([engine, engine], Addresses(web.index_url, web.releases_url), folder=tmp_path / "c")
        assert len(web.asked) == 3
