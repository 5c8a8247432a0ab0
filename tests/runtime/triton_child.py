"""A child process whose Triton kernels run in Triton's interpreter.

TRITON_INTERPRET counts when triton is imported, and torch's own code may import it first, so the
tests' process is no place for it.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any


def _start(settings: dict[str, str]) -> None:
    os.environ.update(settings)
    import torch

    torch.set_num_threads(1)


@contextmanager
def child(**settings: str) -> Iterator[Callable[..., Any]]:
    """Calls functions of importable modules in one process with these environment variables."""
    with ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), initializer=_start, initargs=(settings,)
    ) as pool:
        yield lambda function, *args: pool.submit(function, *args).result()
