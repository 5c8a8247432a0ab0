"""Headers read from the first bytes of a file whose rest is elsewhere."""

from __future__ import annotations


class NeedMoreBytes(Exception):
    """A header goes on after the bytes that were given; never shown to users.

    `n_bytes` are needed from the start of the file at the least. They are within the file and
    within the largest header that is read, so that who fetches them is bounded.
    """

    def __init__(self, n_bytes: int) -> None:
        super().__init__(f"{n_bytes:,} bytes needed")
        self.n_bytes = n_bytes
