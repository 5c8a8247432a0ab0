"""The patch that moves an engine's file to a newer version: text for `git apply`, never applied.

Only the literals of `version` and `read_on` change. That somebody read the release is for a person
to make true: what has to be read stands in the report, not in the patch.
"""

from __future__ import annotations

import ast
import difflib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from nybble.engines.known.base import Engine
from nybble.errors import NybbleError

_VALUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")


@dataclass(frozen=True)
class DataFile:
    """An engine's file.

    Attributes:
        name: in the repository, for the patch.
        text: its source.
    """

    name: str
    text: str


def data_file(engine: Engine) -> DataFile:
    """The file an engine is written in.

    Raises:
        NybbleError: it cannot be read (a frozen program).
    """
    module = type(engine).__module__
    path = getattr(sys.modules.get(module), "__file__", None)
    try:
        with Path(path or "").open(encoding="utf-8", newline="") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise NybbleError(f"the data of {engine.name} cannot be read as source", seen=path,
                          hint="run nybble from a checkout") from error  # fmt: skip
    return DataFile(f"src/{module.replace('.', '/')}.py", text)


def diff(file: DataFile, class_name: str, changes: dict[str, str]) -> str:
    """A unified diff that sets class attributes; empty where they are so already.

    Args:
        file: to change.
        class_name: in it.
        changes: value by attribute; both must be there as plain strings.

    Raises:
        NybbleError: an attribute is not there as a plain string, or a value is no version or date.
    """
    for value in changes.values():
        if not _VALUE.fullmatch(value):
            raise NybbleError("not a value for a data file", seen=value, allowed="0.34.0, b11549")
    lines = file.text.splitlines(keepends=True)
    found = _literals(file, class_name)
    new = list(lines)
    for name, value in changes.items():
        node = found.get(name)
        if node is None or node.end_lineno != node.lineno:
            raise NybbleError(f"{file.name} has no plain {name} in class {class_name}",
                              hint=f'{name} = "{value}"')  # fmt: skip
        row, raw = node.lineno - 1, new[node.lineno - 1].encode()
        # Columns of a syntax tree count bytes of UTF-8.
        text = raw[: node.col_offset] + f'"{value}"'.encode() + raw[node.end_col_offset :]
        new[row] = text.decode()
    made = difflib.unified_diff(lines, new, f"a/{file.name}", f"b/{file.name}")
    return "".join(made)


def _literals(file: DataFile, class_name: str) -> dict[str, ast.Constant]:
    try:
        tree = ast.parse(file.text)
    except (SyntaxError, ValueError) as error:
        raise NybbleError(f"{file.name} is no Python source", seen=error) from error
    found: dict[str, ast.Constant] = {}
    for part in tree.body:
        if not isinstance(part, ast.ClassDef) or part.name != class_name:
            continue
        for line in part.body:
            targets = line.targets if isinstance(line, ast.Assign) else (
                [line.target] if isinstance(line, ast.AnnAssign) else [])  # fmt: skip
            value = getattr(line, "value", None)
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                found.update({t.id: value for t in targets if isinstance(t, ast.Name)})
    return found
