"""Kernels for GPUs, written in Triton; imported only where they run.

`attend.py` is the way in. Without a GPU the same kernels run in Triton's interpreter, which the
tests use: set TRITON_INTERPRET=1 before triton is imported.
"""
