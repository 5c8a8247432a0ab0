"""The child process that parses documents: what hurts a parser hurts nothing else."""

from __future__ import annotations

import contextlib
import importlib
from html import unescape
from typing import Any

from nybble.engines.child import Frame
from nybble.engines.worker import BaseWorker, serve
from nybble.errors import NybbleError


class _Worker(BaseWorker):
    def do_limits(self, request: Frame) -> Frame:
        """Bound this process's memory; a parser that wants more dies, and one document with it."""
        with contextlib.suppress(ImportError, OSError, ValueError):
            import resource

            n_bytes = int(request.header["memory"])
            resource.setrlimit(resource.RLIMIT_AS, (n_bytes, n_bytes))
        return Frame({"ok": True})

    def do_extract(self, request: Frame) -> Frame:
        """Parse a document's bytes; answers its text, title and the starts of its pages."""
        mime = str(request.header["mime"])
        try:
            title, texts = _extract(request.payload, mime)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the parser is no Exception
            raise NybbleError(_reason(error)) from error
        pages, joined, at = [], [], 0
        for text in texts:
            pages.append(at)
            joined.append(text)
            at += len(text) + 2
        header = {"title": title, "pages": pages if mime == "application/pdf" else []}
        return Frame(header, "\n\n".join(joined).encode("utf-8", "replace"))


def _extract(data: bytes, mime: str) -> tuple[str, list[str]]:
    from nybble.rag.markup import without_links

    kreuzberg: Any = importlib.import_module("kreuzberg")  # its stubs lack arguments
    pdf, html = mime == "application/pdf", mime == "text/html"
    config = kreuzberg.ExtractionConfig(
        use_cache=False,  # its cache lies in the working folder
        output_format="markdown",
        disable_ocr=True,
        pages=kreuzberg.PageConfig(extract_pages=True) if pdf else None,
        concurrency=kreuzberg.ConcurrencyConfig(max_threads=1),
        html_options={"preprocessing": {"enabled": True, "preset": "aggressive",
                                        "remove_navigation": True}},
    )  # fmt: skip
    found = kreuzberg.extract_bytes_sync(data, mime, config)
    metadata: dict[str, Any] = dict(found.metadata or {})
    title = metadata.get("title")
    if pdf and found.pages:
        texts = [str(page["content"]) for page in found.pages]
    else:
        texts = [without_links(found.content) if html else found.content]
    return unescape(title) if isinstance(title, str) else "", texts


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    lower = text.lower()
    if "password" in lower or "encrypt" in lower:
        return "encrypted"
    return f"the parser refused it: {text[:160] or type(error).__name__}"


if __name__ == "__main__":
    serve(_Worker)
