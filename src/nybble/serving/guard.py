"""Start a program that ends with its supervisor: `python -m nybble.serving.guard PROGRAM ARGS`.

On Linux the kernel sends SIGTERM when the parent dies, however it dies; elsewhere the program is
started as it is, and a supervisor that is killed leaves it behind.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

MODULE = "nybble.serving.guard"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Become the program."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # died before the call
            sys.exit(1)
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
