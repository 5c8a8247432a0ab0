"""Documents of every kind, and those that are none."""

from __future__ import annotations

import io
import os
import signal
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rag_index_doubles import pdf

from nybble.errors import MissingExtraError
from nybble.rag import loaders
from nybble.rag.documents import Found, listing
from nybble.rag.loaders import Opened, Reader, UnreadableError, digest, encoding_of
from nybble.rag.markup import headings, without_links


@pytest.fixture(scope="module")
def reader() -> object:
    with Reader(seconds=30) as opened:
        yield opened


def found(path: Path) -> Found:
    seen = path.stat()
    return Found(path.name, path, seen.st_size, seen.st_mtime_ns)


def opened(reader: Reader, path: Path, data: bytes) -> tuple[Opened, str]:
    path.write_bytes(data)
    document = reader.open(found(path))
    return document, "".join(part.text for part in document.parts)


def reason(reader: Reader, path: Path, data: bytes) -> str:
    with pytest.raises(UnreadableError) as error:
        opened(reader, path, data)
    return str(error.value)


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", "grüße, 数\nzwei"),
        ("utf-8-sig", "grüße"),
        ("utf-16", "grüße"),
        ("utf-32", "grüße"),
        ("cp1252", "Die Größe der Straße überrascht Jürgen; das müßte für München genügen. " * 4),
    ],
)
def test_plain_text(reader: Reader, tmp_path: Path, encoding: str, text: str) -> None:
    document, read = opened(reader, tmp_path / "a.txt", text.encode(encoding))
    assert read == text and document.kind == "text" and not document.markdown


def test_source_and_markdown(reader: Reader, tmp_path: Path) -> None:
    document, read = opened(reader, tmp_path / "a.py", b"def f():\r\n    return 1\r\n")
    assert read == "def f():\n    return 1\n" and document.kind == "text"
    document, read = opened(reader, tmp_path / "a.md", b"# T\n\n[a](b)\n")
    assert read == "# T\n\n[a](b)\n" and document.markdown


def test_html(reader: Reader, tmp_path: Path) -> None:
    page = (b"<html><head><title>The page</title><script>alert('code')</script></head><body>"
            b"<nav><a href='x'>Elsewhere</a></nav><h1>Top</h1><p>Read <a href='y.html'>this one</a>"
            b" first.</p><h2>Next</h2><pre>a [b](c) d</pre></body></html>")  # fmt: skip
    document, read = opened(reader, tmp_path / "a.html", page)
    assert document.title == "The page" and document.kind == "html"
    assert "Read this one first." in read and "a [b](c) d" in read
    assert "y.html" not in read and "alert" not in read
    assert [h.words for h in headings(read)] == ["Top", "Next"]


def test_pdf_has_pages(reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf(["the first leaf", "the second leaf"], title="Leaves"))
    document = reader.open(found(tmp_path / "a.pdf"))
    (part,) = document.parts
    assert document.title == "Leaves" and document.kind == "pdf" and len(part.pages) == 2
    assert part.text.index("first") < part.pages[1] <= part.text.index("second")


def test_documents_of_office_programs(reader: Reader, tmp_path: Path) -> None:
    word = ('<?xml version="1.0"?><w:document xmlns:w="http://schemas.openxmlformats.org/'
            'wordprocessingml/2006/main"><w:body><w:p><w:r><w:t>a word in it</w:t></w:r></w:p>'
            "</w:body></w:document>")  # fmt: skip
    kinds = ('<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/'
             'content-types"><Override PartName="/word/document.xml" ContentType="application/vnd.'
             'openxmlformats-officedocument.wordprocessingml.document.main+xml"/>'
             "</Types>")  # fmt: skip
    open_text = ('<?xml version="1.0"?><office:document-content xmlns:office="urn:oasis:names:tc:'
                 'opendocument:xmlns:office:1.0" xmlns:text="urn:oasis:names:tc:opendocument:xmlns:'
                 'text:1.0"><office:body><office:text><text:p>a word in it</text:p></office:text>'
                 "</office:body></office:document-content>")  # fmt: skip
    for name, members in (
        ("a.docx", {"[Content_Types].xml": kinds, "word/document.xml": word}),
        ("a.odt", {"content.xml": open_text}),
    ):
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as archive:
            for member, text in members.items():
                archive.writestr(member, text)
        assert "a word in it" in opened(reader, tmp_path / name, data.getvalue())[1]
    assert "a word in it" in opened(reader, tmp_path / "a.rtf", rb"{\rtf1\ansi a word in it}")[1]


def test_what_is_no_document(reader: Reader, tmp_path: Path) -> None:
    locked = pdf(["secret"], encrypted=True)
    assert reason(reader, tmp_path / "locked.pdf", locked) == "encrypted"
    assert "the parser refused it" in reason(reader, tmp_path / "bad.pdf", b"%PDF-1.4 rubbish")
    assert reason(reader, tmp_path / "scan.pdf", pdf([""])).startswith("no text in it (a scan?")
    assert reason(reader, tmp_path / "a.png", b"\x89PNG\r\n\x1a\n\x00\x00" * 9) == "not text"
    assert "not text" in reason(reader, tmp_path / "a.bin", bytes(range(1, 256)) * 8)
    assert "the parser refused it" in reason(reader, tmp_path / "a.docx", b"PK\x03\x04 no zip")
    late = b"a" * loaders._HEAD + b"\xff\xfe\xfd"
    assert reason(reader, tmp_path / "late.txt", late) == "not utf-8 throughout"
    # The parser's process is still the same after all of them.
    assert "fine" in opened(reader, tmp_path / "a.html", b"<p>fine</p>")[1]


def test_a_parser_that_dies_or_hangs_costs_one_document(tmp_path: Path) -> None:
    with Reader(seconds=1.5) as reader:
        page = tmp_path / "a.html"
        page.write_bytes(b"<p>fine</p>")
        list(reader.open(found(page)).parts)
        child = reader._child
        assert child is not None
        os.kill(child.pid, signal.SIGSTOP)
        begun = time.monotonic()
        with pytest.raises(UnreadableError, match="the parser took over 1.5 s"):
            reader.open(found(page))
        assert time.monotonic() - begun < 30 and not child.alive
        reader._seconds = 30
        list(reader.open(found(page)).parts)
        again = reader._child
        assert again is not None and again.pid != child.pid
        request = again.request

        def killed(*args: object, **kwargs: object) -> object:
            os.kill(again.pid, signal.SIGKILL)
            return request(*args, **kwargs)

        again.request = killed
        with pytest.raises(UnreadableError, match="crashed"):
            reader.open(found(page))
        assert next(reader.open(found(page)).parts).text == "fine"


def test_the_parser_may_not_take_all_memory(tmp_path: Path) -> None:
    with Reader(seconds=60, memory=1 << 29) as reader:
        (tmp_path / "a.html").write_bytes(b"<p>" + b"many words here " * 5_000_000)
        with pytest.raises(UnreadableError, match="crashed|refused"):
            reader.open(found(tmp_path / "a.html"))


def test_without_the_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nybble.rag.packages.importlib.util.find_spec", lambda name: None)
    (tmp_path / "a.html").write_text("<p>text")
    with Reader() as reader, pytest.raises(MissingExtraError, match="missing: kreuzberg"):
        reader.open(found(tmp_path / "a.html"))


def test_long_texts_come_in_pieces(
    reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaders, "_PIECE", 1000)
    text = "".join(f"line {n} of many\n" + "\n" * (n % 7 == 0) for n in range(500)) + "x" * 3000
    (tmp_path / "a.txt").write_text(text)
    parts = list(reader.open(found(tmp_path / "a.txt")).parts)
    assert "".join(p.text for p in parts) == text
    assert max(len(p.text) for p in parts) <= 1000
    assert [p.start for p in parts] == [text.index(parts[0].text)] + [
        sum(len(q.text) for q in parts[:n]) for n in range(1, len(parts))
    ]
    assert all(p.text.endswith("\n") for p in parts[:8])


def test_a_file_that_changes_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    listed = found(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text("one more")
    with pytest.raises(UnreadableError, match="changed while it was read"):
        digest(listed)


@given(st.binary(max_size=300))
def test_any_bytes_have_an_encoding_or_a_reason(data: bytes) -> None:
    try:
        "".encode(encoding_of(data))
    except UnreadableError as error:
        assert "not text" in str(error)


def test_words_of_headings_keep_their_underscores() -> None:
    text = "# F.3. auth_delay\n\n# pg\\_x **bold** _soft_ `code`\n\nTitle\n=====\n"
    assert [h.words for h in headings(text)] == ["F.3. auth_delay", "pg_x bold soft code", "Title"]


@given(st.text(alphabet='[]()#`~\n \\!ab"-=*', max_size=200))
def test_any_markdown_is_read(text: str) -> None:
    assert "\n\n\n" not in without_links(text)
    for heading in headings(text):
        assert 0 <= heading.start < len(text) and heading.words


@pytest.mark.parametrize(
    "text",
    ["# a" + " " * 200_000 + "a", "[" * 100_000, "[a](" * 50_000, "[" + "[x]" * 50_000,
     "---\n" + "a: b: c: d: e\n" * 5_000, "![" * 50_000, "](" * 50_000, "#" * 200_000],
)  # fmt: skip
def test_hostile_markdown_takes_no_long(text: str) -> None:
    begun = time.process_time()
    without_links(text)
    headings(text)
    assert time.process_time() - begun < 5


def test_sphinx_marks_and_entities_are_no_words(tmp_path: Path) -> None:
    page = (
        "<html><head><title>json &#8212; Encoder &amp; decoder</title></head><body><main>"
        '<h1>json<a href="#json">¶</a></h1><p>Text about ¶ signs.</p></main></body></html>'
    )
    (tmp_path / "json.html").write_text(page, encoding="utf-8")
    [found] = listing(tmp_path, own=tmp_path / "index").found
    with Reader() as reader:
        opened = reader.open(found)
        [part] = opened.parts
    assert opened.title == "json — Encoder & decoder"
    assert headings(part.text)[0].words == "json" and "about ¶ signs" in part.text
