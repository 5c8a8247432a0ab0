"""Files with a JSON object a line: read whole, in a bounded size, or refused in words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nybble.errors import NybbleError, unknown


@dataclass(frozen=True)
class JsonLines:
    """A kind of file.

    Attributes:
        what: one line of it is, as in "not a question".
        keys: that a line may have.
        example: a line.
        most_bytes: of a file.
    """

    what: str
    keys: Sequence[str]
    example: str
    most_bytes: int

    def read(self, path: Path) -> tuple[list[tuple[str, dict[str, Any]]], bytes]:
        """Every line with its place; empty lines are skipped.

        Returns:
            ("FILE, line N", object) of each line, and the file's bytes.

        Raises:
            NybbleError: unreadable, too large, no line, or a line that is none; says which.
        """
        try:
            with path.open("rb") as file:
                data = file.read(self.most_bytes + 1)
        except OSError as error:
            raise NybbleError(f"cannot read the {self.what}s",
                              seen=f"{path}: {error.strerror or error}",
                              hint=f"a file with lines {self.example}") from error  # fmt: skip
        if len(data) > self.most_bytes:
            raise NybbleError(f"the file is too large for {self.what}s", seen=path,
                              allowed=f"up to {self.most_bytes >> 20} MiB")  # fmt: skip
        lines = enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1)
        found = [self._line(line, f"{path.name}, line {n}") for n, line in lines if line.strip()]
        if not found:
            raise NybbleError(f"the file has no {self.what}", seen=path,
                              hint=f"lines {self.example}")  # fmt: skip
        return found, data

    def _line(self, line: bytes, where: str) -> tuple[str, dict[str, Any]]:
        try:
            data = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise NybbleError("not a line of JSON", seen=f"{where}: {error}", hint=self.example,
                              allowed="one object a line, UTF-8") from error  # fmt: skip
        if not isinstance(data, dict):
            raise NybbleError(f"not a {self.what}", seen=f"{where}: {type(data).__name__}",
                              allowed="an object", hint=self.example)  # fmt: skip
        for key in data:
            if key not in self.keys:
                raise unknown(f"unknown field of a {self.what}", key, self.keys,
                              seen=f"{where}: {key[:60]}", hint=self.example)  # fmt: skip
        return where, data
