"""What feeds answer, read and refused; every byte counts as hostile."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from feed_samples import HEAD, NOTES, atom, index
from hypothesis import given
from hypothesis import strategies as st

from nybble.errors import NybbleError
from nybble.watch.parse import day, parse_index, parse_releases, plain, web_address

BOMB = b"""<?xml version="1.0"?>
<!DOCTYPE feed [
 <!ENTITY a "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa">
 <!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">
 <!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">
 <!ENTITY d "&c;&c;&c;&c;&c;&c;&c;&c;&c;&c;&c;&c;&c;&c;&c;&c;">
 <!ENTITY e "&d;&d;&d;&d;&d;&d;&d;&d;&d;&d;&d;&d;&d;&d;&d;&d;">
]>
<feed xmlns="http://www.w3.org/2005/Atom"><entry><title>&e;</title></entry></feed>"""
OUTSIDE = b"""<?xml version="1.0"?>
<!DOCTYPE feed [<!ENTITY x SYSTEM "file:///etc/passwd">]>
<feed xmlns="http://www.w3.org/2005/Atom"><entry><id>/&x;</id></entry></feed>"""


class TestIndex:
    def test_releases_with_their_days(self) -> None:
        found = parse_index(index("made", "0.1", "0.2rc1", "0.2"), "made")
        assert [(r.version, r.published) for r in found] == [
            ("0.1", "2026-01-01"),
            ("0.2rc1", "2026-01-02"),
            ("0.2", "2026-01-03"),
        ]

    def test_withdrawn_and_empty_releases_do_not_count(self) -> None:
        body = json.loads(index("made", "0.1", "0.2", yanked=("0.2",)))
        body["releases"] |= {"0.3": [], "0.4": "x", "not a version": [{}], "9" * 65: [{}]}
        assert [r.version for r in parse_index(json.dumps(body).encode(), "made")] == ["0.1"]

    def test_a_name_is_compared_as_pep_503_says(self) -> None:
        assert parse_index(index("Llama_Cpp.Python", "0.1"), "llama-cpp-python")

    def test_an_index_without_releases_tells_the_newest(self) -> None:
        body = {"info": {"name": "made", "version": "0.5"}, "urls": [{"yanked": False}]}
        assert [r.version for r in parse_index(json.dumps(body).encode(), "made")] == ["0.5"]

    @pytest.mark.parametrize(
        "body",
        [b"", b"<html>", b"[]", b"{}", b'{"info": {}}', b'{"info": {"name": 3}}', b"\xff\xfe\x00",
         b"[" * 100_000, b"1" * 5000, index("other", "0.1")],
    )  # fmt: skip
    def test_anything_else_is_refused(self, body: bytes) -> None:
        with pytest.raises(NybbleError, match="package index"):
            parse_index(body, "made")

    def test_too_many_releases(self) -> None:
        body = {"info": {"name": "made"}, "releases": {str(n): [{}] for n in range(20_001)}}
        with pytest.raises(NybbleError, match="too many"):
            parse_index(json.dumps(body).encode(), "made")

    @given(st.binary(max_size=300))
    def test_any_bytes(self, body: bytes) -> None:
        with suppress(NybbleError):
            parse_index(body, "made")

    @given(
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(max_size=9),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["yanked", "upload_time_iso_8601", "x"]), inner, max_size=3
                )
            ),
            max_leaves=8,
        )
    )
    def test_any_json_where_files_belong(self, value: object) -> None:
        body = {"info": {"name": "made"}, "releases": {"1.0": value, "2.0": [value]}}
        for release in parse_index(json.dumps(body).encode(), "made"):
            assert release.version in ("1.0", "2.0")


class TestReleases:
    def test_a_feed(self) -> None:
        found = parse_releases(atom("o/made", ("v0.34.0", "2026-11-20", NOTES), ("b1", "", "")))
        assert [(r.version, r.published, r.url) for r in found] == [
            ("v0.34.0", "2026-11-20", "https://github.com/o/made/releases/tag/v0.34.0"),
            ("b1", "", "https://github.com/o/made/releases/tag/b1"),
        ]
        assert found[0].notes == NOTES

    def test_the_tag_is_taken_from_the_id_without_such_a_link(self) -> None:
        body = atom("o/made", ("v1", "2026-11-20", "")).replace(b"/releases/tag/", b"/x/")
        assert [r.version for r in parse_releases(body)] == ["v1"]

    def test_a_tag_with_odd_characters_is_cleaned(self) -> None:
        (found,) = parse_releases(atom("o/made", ("v1%1B%5B31m%0Ax", "2026-11-20", "")))
        assert found.version == "v1[31m x"

    @pytest.mark.parametrize("href", ["javascript:alert(1)", "file:///etc/passwd", "http://[x"])
    def test_other_addresses_are_not_shown(self, href: str) -> None:
        body = atom("o/made", ("v1", "2026-11-20", ""))
        body = body.replace(b"https://github.com/o/made/releases/tag/v1", href.encode())
        assert [(r.version, r.url) for r in parse_releases(body)] == [("v1", "")]

    def test_xhtml_content(self) -> None:
        body = atom("o/made", ("v1", "2026-11-20", "@"))
        inside = b'<div xmlns="http://www.w3.org/1999/xhtml"><p>one</p><p>two</p></div>'
        (found,) = parse_releases(body.replace(b">@<", b">" + inside + b"<"))
        assert found.notes.split() == ["one", "two"]

    @pytest.mark.timeout(20)
    @pytest.mark.parametrize("body", [BOMB, OUTSIDE, BOMB.decode().encode("utf-16")])
    def test_a_document_type_is_refused_before_any_entity(self, body: bytes) -> None:
        with pytest.raises(NybbleError, match="document type"):
            parse_releases(body)

    @pytest.mark.parametrize(
        "body",
        [b"", b"<feed", b"not xml", b"<a/>", b"<feed/>", b"<feed xmlns='x'/>", b"\x00" * 9,
         b"<?xml version='1.0' encoding='nonsense'?><feed/>", atom("o/made")[:-9]],
    )  # fmt: skip
    def test_damaged_and_other_documents_are_refused(self, body: bytes) -> None:
        with pytest.raises(NybbleError, match="release feed"):
            parse_releases(body)

    def test_too_deep(self) -> None:
        with pytest.raises(NybbleError, match="deep"):
            parse_releases(HEAD.format(repository="o/made").encode() + b"<a>" * 1000)

    def test_too_many_entries(self) -> None:
        entries = b"<entry><id>/v1</id></entry>" * 501
        with pytest.raises(NybbleError, match="too many"):
            parse_releases(HEAD.format(repository="o/made").encode() + entries + b"</feed>")

    def test_long_notes_are_cut(self) -> None:
        (found,) = parse_releases(atom("o/made", ("v1", "2026-11-20", "x" * 500_000)))
        assert len(found.notes) == 1 << 18

    @given(st.binary(max_size=300))
    def test_any_bytes(self, body: bytes) -> None:
        with suppress(NybbleError):
            parse_releases(body)

    @given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), max_size=4))
    def test_any_text_in_a_feed(self, entries: list[tuple[str, str]]) -> None:
        parts = "".join(f"<entry><id>{i}</id><content>{c}</content></entry>" for i, c in entries)
        body = (HEAD.format(repository="o/made") + parts + "</feed>").encode("utf-8", "replace")
        with suppress(NybbleError):
            for found in parse_releases(body):
                assert found.version.isprintable() and 0 < len(found.version) <= 64


@given(st.text(max_size=200))
def test_plain_text_is_one_printable_line(text: str) -> None:
    found = plain(text, 50)
    assert len(found) <= 50 and "\n" not in found and "\x1b" not in found
    assert plain(found, 50) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [("2026-11-20T01:02:03Z", "2026-11-20"), ("2026-11-20", "2026-11-20"), ("x", ""), (None, ""),
     (3, ""), ("2026-11-20" + " " * 99, "")],
)  # fmt: skip
def test_day(text: object, found: str) -> None:
    assert day(text) == found


@given(st.text(max_size=60))
def test_any_text_as_address(text: str) -> None:
    assert web_address(text) in (text.strip(), "")
