"""Tokens of one side of one layer, in pages that are never moved.

A sequence grows by pages at its end and, behind a sliding window, gives pages back at its front;
nothing is copied for either. A page may be shared with a fork: whoever writes to it first takes a
copy of that one page. A prefix of one row that many rows continue from is one page for all of
them, seen through a batch axis of stride 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from nybble.runtime.layout import PAGE, Layout


class Pages:
    """One side's pages, in the order of their tokens.

    Args:
        layout: of a row.
        heads: KV heads.
        batch: rows of the batch.
        device: where pages lie.

    Attributes:
        start: position of the first live token.
        count: live tokens.
        offset: dead tokens in front of them on the first page.
    """

    def __init__(
        self, layout: Layout, heads: int, batch: int, device: torch.device, start: int = 0
    ) -> None:
        self.layout = layout
        self.heads = heads
        self.batch = batch
        self.device = device
        self.start = start
        self.count = 0
        self.offset = 0
        self._pages: list[torch.Tensor] = []
        self._shared: list[bool] = []
        self._spare: list[torch.Tensor] = []
        self.keep = 1  # pages that are kept for later when the sequence gives them back
        self._table: np.ndarray | None = None
        self._device_table: torch.Tensor | None = None

    @property
    def stop(self) -> int:
        """Position behind the last token."""
        return self.start + self.count

    def reserve(self, tokens: int) -> None:
        """Allocate pages for `tokens` more, all in one; they are taken when the sequence grows."""
        held = (len(self._pages) + len(self._spare)) * PAGE
        missing = -(-(self.offset + self.count + tokens - held) // PAGE)
        if missing > 0:
            size = (missing, self.batch, self.heads, PAGE * self.layout.row_bytes)
            block = torch.zeros(size, dtype=torch.uint8, device=self.device)
            self._spare += reversed(block.unbind())

    def _new(self) -> torch.Tensor:
        size = (self.batch, self.heads, PAGE * self.layout.row_bytes)
        # Zeros, since a kernel reads whole pages and masks afterwards.
        return torch.zeros(size, dtype=torch.uint8, device=self.device)

    def _views(self, page: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes [B, heads, PAGE, code_bytes] and scales [B, heads, PAGE, scale_bytes]."""
        codes, scales = len(self.layout.codes), len(self.layout.scales)
        rows = (self.batch, self.heads, PAGE)
        return (
            page[..., : PAGE * codes].view(*rows, codes),
            page[..., PAGE * codes :].view(*rows, scales),
        )

    def grow(self, n: int) -> int:
        """Make room for n tokens, which count as live from now on.

        Returns:
            Where the first goes, counted from the start of the first page.
        """
        first = self.offset + self.count
        if first % PAGE and self._shared[-1]:
            self._pages[-1] = self._pages[-1].clone(memory_format=torch.contiguous_format)
            self._shared[-1] = False
            self._changed()
        self.count += n
        while (self.offset + self.count) > len(self._pages) * PAGE:
            self._pages.append(self._spare.pop() if self._spare else self._new())
            self._shared.append(False)
            self._changed()
        return first

    def append(self, codes: torch.Tensor, scales: torch.Tensor) -> None:
        """Add tokens: codes uint8 [B, heads, n, code_bytes], scales [B, heads, n, scale_bytes]."""
        n, done = codes.shape[2], 0
        first = self.grow(n)
        while done < n:
            page, at = divmod(first + done, PAGE)
            take = min(PAGE - at, n - done)
            to_codes, to_scales = self._views(self._pages[page])
            to_codes[:, :, at : at + take] = codes[:, :, done : done + take]
            to_scales[:, :, at : at + take] = scales[:, :, done : done + take]
            done += take

    def drop(self, n: int) -> None:
        """Forget the first n tokens; whole pages are kept for new ones."""
        n = max(0, min(n, self.count))
        self.start += n
        self.count -= n
        self.offset += n
        full = self.offset // PAGE
        if not full:
            return
        for page, shared in zip(self._pages[:full], self._shared[:full], strict=True):
            if not shared and len(self._spare) < self.keep:
                self._spare.append(page)
        del self._pages[:full], self._shared[:full]
        self.offset -= full * PAGE
        self._changed()

    def settle(self, new: int) -> None:
        """Keep as many pages for later as a window gives back when `new` tokens come."""
        self.keep = max(1, new // PAGE)
        if self.start:  # it has given some back, so what lies there was not reserved
            del self._spare[self.keep :]

    def crop(self, n: int) -> None:
        """Forget the last n tokens."""
        self.count -= max(0, min(n, self.count))
        keep = -(-(self.offset + self.count) // PAGE)
        if keep < len(self._pages):
            for page, shared in zip(self._pages[keep:], self._shared[keep:], strict=True):
                if not shared and len(self._spare) < self.keep:
                    self._spare.append(page)
            del self._pages[keep:], self._shared[keep:]
            self._changed()

    def read(self, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and scales of live tokens [first, last), as `append` takes them."""
        parts = []
        at, end = self.offset + first, self.offset + last
        while at < end:
            page, begin = divmod(at, PAGE)
            upto = min(PAGE, begin + end - at)
            codes, scales = self._views(self._pages[page])
            parts.append((codes[:, :, begin:upto], scales[:, :, begin:upto]))
            at += upto - begin
        if not parts:
            shape = (self.batch, self.heads, 0)
            empty = torch.empty(0, dtype=torch.uint8, device=self.device)
            return (
                empty.view(*shape, len(self.layout.codes)),
                empty.view(*shape, len(self.layout.scales)),
            )
        if len(parts) == 1:
            return parts[0]
        return torch.cat([c for c, _ in parts], 2), torch.cat([s for _, s in parts], 2)

    def table(self) -> np.ndarray:
        """Addresses of head 0 of every page and batch row, uint64 [pages, B]."""
        if self._table is None:
            rows = np.array(
                [(p.data_ptr(), p.stride(0)) for p in self._pages], dtype=np.uint64
            ).reshape(-1, 2)
            self._table = rows[:, :1] + rows[:, 1:] * np.arange(self.batch, dtype=np.uint64)
        return self._table

    def device_table(self) -> torch.Tensor:
        """`table` as int64 on the device."""
        if self._device_table is None:
            self._device_table = torch.from_numpy(self.table().view(np.int64)).to(self.device)
        return self._device_table

    def _changed(self) -> None:
        self._table = self._device_table = None

    def storages(self) -> Iterator[tuple[int, int]]:
        """Address and bytes of every allocation held."""
        for page in (*self._pages, *self._spare):
            storage = page.untyped_storage()
            yield storage.data_ptr(), storage.nbytes()

    def fork(self) -> Pages:
        """A sequence that continues from here by itself; pages are shared until written to."""
        self._shared = [True] * len(self._pages)
        other = Pages(self.layout, self.heads, self.batch, self.device, self.start)
        other.count, other.offset = self.count, self.offset
        other._pages, other._shared = list(self._pages), list(self._shared)
        return other

    def repeat(self, times: int) -> None:
        """Repeat every row of the batch; a single row is not copied."""
        one = self.batch == 1

        def repeat(page: torch.Tensor) -> torch.Tensor:
            return page.expand(times, -1, -1) if one else page.repeat_interleave(times, 0)

        self._rebatch(self.batch * times, repeat)

    def select(self, rows: torch.Tensor) -> None:
        """Make the batch of these of its rows, in this order."""
        index = rows.to(self.device)

        def pick(page: torch.Tensor) -> torch.Tensor:
            if self.batch > 1 and page.stride(0) == 0:
                return page[:1].expand(len(index), -1, -1)
            return page.index_select(0, index)

        self._rebatch(len(index), pick)

    def _rebatch(self, batch: int, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._pages = [change(page) for page in self._pages]
        # A page seen through stride 0 is written by nobody: the next token's writer copies it.
        self._shared = [
            shared or (batch > 1 and page.stride(0) == 0)
            for page, shared in zip(self._pages, self._shared, strict=True)
        ]
        self.batch = batch
        self._spare = []
        self._changed()
