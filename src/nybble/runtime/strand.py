"""Tokens of one layer that are stored alike: protected first ones, the body, the recent window.

A layer's cache is one to three strands in the order of positions, which attention reads one by
one and joins by log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from nybble.runtime.dispatch import coded, write
from nybble.runtime.latent import Latent
from nybble.runtime.pages import Pages
from nybble.runtime.side import Side


@dataclass
class Strand:
    """Tokens of one layer that are stored alike.

    Attributes:
        k: how keys are stored; None where they follow from the values.
        v: how values are stored.
        k_pages: pages of keys, or None.
        v_pages: pages of values; both hold the same tokens.
        latent: rebuilds keys where `k` is None.
        window: how many tokens a query looks back here, or None for all.
        recent: the strand that holds the newest tokens in 16 bits, which a query then does not
            read here; None if there is none.
        is_recent: whether this is that strand.
    """

    k: Side | None
    v: Side
    k_pages: Pages | None
    v_pages: Pages
    latent: Latent | None = None
    window: int | None = None
    recent: Strand | None = None
    is_recent: bool = False

    @property
    def own_window(self) -> int | None:
        """The window of the recent strand, which no mask knows of; None for the others."""
        return self.window if self.is_recent else None

    @property
    def pages(self) -> tuple[Pages, ...]:
        """Both sides' pages."""
        return (self.v_pages,) if self.k_pages is None else (self.k_pages, self.v_pages)

    @property
    def start(self) -> int:
        """Position of the first token."""
        return self.v_pages.start

    @property
    def stop(self) -> int:
        """Position behind the last token."""
        return self.v_pages.stop

    @property
    def count(self) -> int:
        """Tokens held."""
        return self.v_pages.count

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store tokens [B, heads, n, D] behind the others."""
        if not keys.shape[2]:
            return
        if self.k is not None and self.k_pages is not None:
            write(self.k, self.k_pages, keys)
        write(self.v, self.v_pages, values)

    def coded(self, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [first, last) of this strand as kernels see them, float32 [B, heads, n, D].

        Values are in the coded domain; so are keys, but for a latent's, which are as the model
        has them.
        """
        v = coded(self.v, self.v_pages, first, last)
        if self.k is None or self.k_pages is None:
            assert self.latent is not None
            return self.latent.keys(self._values(v), self.start + first), v
        return coded(self.k, self.k_pages, first, last), v

    def states(self, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of tokens [first, last) as the model has them, float32."""
        k, v = self.coded(first, last)
        if self.k is None:
            return k, self._values(v)
        return self.k.sum_out(k, torch.ones_like(k[..., :1])), self._values(v)

    def _values(self, y: torch.Tensor) -> torch.Tensor:
        return self.v.sum_out(y, torch.ones_like(y[..., :1]))

    def query_in(self, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Queries float32 [B, heads, rows, D] as they meet `coded` keys; see `Side.query_in`."""
        return (q, None) if self.k is None else self.k.query_in(q)

    def visible(self, position: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of this strand that each of n queries from `position` on reads.

        Returns:
            First token and the one behind the last, int64 [n], counted from `start`.
        """
        at = torch.arange(position, position + n)
        stop = at + 1
        if self.recent is not None and self.recent.window is not None:
            # After a crop the recent window may not reach back as far as it should.
            stop = torch.minimum(stop, (stop - self.recent.window).clamp(min=self.recent.start))
        stop = (stop - self.start).clamp(0, self.count)
        if self.window is None:
            return torch.zeros_like(stop), stop
        start = (at + 1 - self.window - self.start).clamp(0, self.count)
        return torch.minimum(start, stop), stop

    def storages(self) -> Iterator[tuple[int, int]]:
        """See `Pages.storages`."""
        for pages in self.pages:
            yield from pages.storages()

    def fork(self) -> Strand:
        """See `Pages.fork`; the copy's `recent` is for its layer to set."""
        latent = self.latent and replace(self.latent)
        k_pages = None if self.k_pages is None else self.k_pages.fork()
        return replace(
            self, k_pages=k_pages, v_pages=self.v_pages.fork(), latent=latent, recent=None
        )
