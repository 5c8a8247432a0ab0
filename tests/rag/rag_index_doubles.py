"""An embedding without a model, a silent progress, and small PDFs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nybble.rag.build import IndexOptions, IndexReport, build
from nybble.rag.embed.base import Vectors, normalised
from nybble.rag.embed.minilm import minilm
from nybble.rag.words import words

DIMS = 64


class WordModel:
    """Texts with the same words are near; tokens are MiniLM's."""

    model = ""

    def __init__(self, name: str = "minilm", fingerprint: str = "words") -> None:
        self.name, self._fingerprint = name, fingerprint
        self.embedded: list[str] = []
        self.fail_after: int | None = None

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def tokenizer(self) -> Any:
        return minilm().tokenizer()

    def passages(self, texts: Sequence[str]) -> Vectors:
        if self.fail_after is not None and len(self.embedded) >= self.fail_after:
            raise KeyboardInterrupt
        self.embedded += texts
        return np.stack([self.query(t) for t in texts])

    def query(self, text: str) -> Vectors:
        vector = np.full(DIMS, 1e-3, np.float32)
        for word in words(text):
            vector[hashlib.md5(word.encode()).digest()[0] % DIMS] += 1
        return normalised(vector)


class Silent:
    def __init__(self) -> None:
        self.begun: list[float] = []
        self.done = 0.0

    def stage(self, text: str) -> None: ...

    def begin(self, text: str, total: float) -> None:
        self.begun.append(total)

    def advance(self, done: float) -> None:
        self.done += done

    def note(self, text: str) -> None: ...


def indexed(folder: Path, index: Path | None = None, **options: Any) -> IndexReport:
    place = index or folder / ".nybble-rag"
    return build(folder, place, IndexOptions(**options), Silent())


def pdf(pages: Sequence[str], *, title: str = "", encrypted: bool = False) -> bytes:
    """A PDF with a line of Helvetica on each page; `encrypted` asks for a password."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", "", "<< /Type /Font /Subtype /Type1 "
               "/BaseFont /Helvetica >>"]  # fmt: skip
    kids = []
    for text in pages:
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET" if text else ""
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        objects.append("<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font "
                       f"<< /F1 3 0 R >> >> /Contents {len(objects)} 0 R >>")  # fmt: skip
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Count {len(kids)} /Kids [{' '.join(kids)}] >>"
    objects.append(f"<< /Title ({title}) >>")
    trailer = f"/Size {len(objects) + 2} /Root 1 0 R /Info {len(objects)} 0 R"
    if encrypted:
        lock = "00" * 32
        objects.append(f"<< /Filter /Standard /V 1 /R 2 /O <{lock}> /U <{lock}> /P -4 >>")
        trailer += f" /Encrypt {len(objects)} 0 R /ID [<{'11' * 16}> <{'11' * 16}>]"
    made, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(made))
        made += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{p:010d} 00000 n \n" for p in places)
    start = len(made)
    made += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}".encode()
    return made + f"trailer\n<< {trailer} >>\nstartxref\n{start}\n%%EOF\n".encode()
