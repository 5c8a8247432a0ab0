"""BM25 over the passages (bm25s), kept beside the database and mapped into memory when read.

It is made anew after a change, under a name of its own; the database says which one is in
force and of which revision. A reader whose folder was replaced keeps what it has mapped.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from nybble.errors import NybbleError
from nybble.rag.fuse import Ranking
from nybble.rag.packages import need
from nybble.rag.words import words

PREFIX = "lexical-"
# Passages are of nearly one length, so length counts for less than Lucene's 0.75; both values are
# Anserini's, and found more than 1.2 and 0.75 on bench/rag_retrieval.py's tuning half.
_K1, _B = 0.9, 0.4


def write(folder: Path, texts: Iterable[tuple[int, str]]) -> str:
    """Make the word index of (passage id, text) in the index's folder; returns its name.

    Raises:
        NybbleError: it cannot be written.
    """
    bm25s = _bm25s()
    ids, vocabulary, rows = [], {"": 0}, []
    for number, text in texts:
        ids.append(number)
        row = [vocabulary.setdefault(w, len(vocabulary)) for w in words(text)]
        rows.append(np.array(row or [0], np.int32))  # a list takes eight times the room
    name = f"{PREFIX}{secrets.token_hex(4)}"
    made = folder / f".{name}.tmp"
    try:
        made.mkdir()
        if rows:
            index = bm25s.BM25(method="lucene", k1=_K1, b=_B)
            index.index((rows, vocabulary), show_progress=False)
            index.save(made, show_progress=False)
        np.save(made / "ids.npy", np.array(ids, np.int64), allow_pickle=False)
        (made / "words.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        os.replace(made, folder / name)
    except OSError as error:
        shutil.rmtree(made, ignore_errors=True)
        raise NybbleError(
            f"cannot write the word index: {error.strerror or error}",
            seen=folder,
            hint="free some space, then the same command again",
        ) from error
    return name


def remove_others(folder: Path, keep: str) -> None:
    """Delete word indexes that are not in force, and those that killed runs left."""
    for place in (*folder.glob(f"{PREFIX}*"), *folder.glob(f".{PREFIX}*.tmp")):
        if place.name != keep:
            shutil.rmtree(place, ignore_errors=True)


class DamagedWordsError(NybbleError):
    """A word index that cannot be read, or is there no longer.

    Args:
        place: its folder.
    """

    def __init__(self, place: Path) -> None:
        self.name = place.name
        super().__init__("the word index is damaged", seen=place,
                         hint="delete this folder, then nybble rag index DIR")  # fmt: skip


class Lexical:
    """A word index, read.

    Args:
        folder: the index's.
        name: of the word index in it.

    Raises:
        DamagedWordsError: it cannot be read.
    """

    def __init__(self, folder: Path, name: str) -> None:
        place = folder / name
        if not name.startswith(PREFIX) or "/" in name:
            raise NybbleError("the index names a strange word index", seen=name)
        bm25s = _bm25s()
        try:
            self._ids = np.load(place / "ids.npy", mmap_mode="r", allow_pickle=False)
            found = json.loads((place / "words.json").read_text(encoding="utf-8"))
            self._vocabulary = {str(k): int(v) for k, v in found.items()}
            self._index: Any = None
            if len(self._ids):
                self._index = bm25s.BM25.load(place, mmap=True, load_vocab=False,
                                              load_corpus=False, allow_pickle=False)  # fmt: skip
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise DamagedWordsError(place) from error

    def nearest(self, query: str, k: int, also: Iterable[int] = ()) -> Ranking:
        """The passages with the highest BM25 scores above 0.

        Args:
            query: in words.
            k: passages at most.
            also: ids whose scores are wanted besides.
        """
        known = [self._vocabulary[w] for w in words(query) if w in self._vocabulary]
        if self._index is None or not known:
            return Ranking()
        scores = self._index.get_scores_from_ids(known)
        k = min(k, len(scores))
        top = np.argpartition(-scores, k - 1)[:k]
        order = [i for i in top[np.lexsort((top, -scores[top]))] if scores[i] > 0]
        # Ids were written in rising order; one that is not there comes later than this index.
        others = np.fromiter(also, np.int64)
        at = np.minimum(np.searchsorted(self._ids, others), len(self._ids) - 1)
        here = at[self._ids[at] == others]
        found = {int(self._ids[i]): float(scores[i]) for i in (*order, *here)}
        return Ranking([int(self._ids[i]) for i in order], found)


def _bm25s() -> Any:
    need("bm25s")
    import bm25s

    return bm25s
