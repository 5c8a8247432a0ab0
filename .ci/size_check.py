"""Print the size of every source file and fail past the ceiling of 500 lines."""

from __future__ import annotations

import sys
from pathlib import Path

CEILING = 500
ROOT = Path(__file__).parents[1]


def main() -> int:
    """Count lines of Python, templates, styles and scripts under src, tests and bench."""
    sizes = sorted(
        (
            (len(path.read_text(encoding="utf-8").splitlines()), path.relative_to(ROOT))
            for folder in ("src", "tests", "bench")
            for pattern in ("*.py", "*.j2", "*.css", "*.js", "*.c", "*.h")
            for path in (ROOT / folder).rglob(pattern)
        ),
        reverse=True,
    )
    over = [entry for entry in sizes if entry[0] > CEILING]
    lines = [n for n, _ in sizes]
    for n, path in sizes[:12]:
        print(f"{n:5} {path}")
    print(f"{len(lines)} files, {sum(lines)} lines, median {sorted(lines)[len(lines) // 2]}")
    for n, path in over:
        print(f"over {CEILING} lines: {path} has {n}", file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
