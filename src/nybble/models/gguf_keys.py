"""Typed access to the metadata of a GGUF header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nybble.errors import ModelFileError
from nybble.models.file_kinds import show
from nybble.models.gguf_types import Value

MAX_SIZE = 1 << 31


@dataclass(frozen=True)
class Keys:
    """The metadata of the file `path`.

    Every reader raises ModelFileError when the value has another type or size.
    """

    path: Path
    values: Mapping[str, Value]

    def missing(self, key: str) -> ModelFileError:
        """Return the error for an absent key."""
        return ModelFileError(f"{self.path.name}: the key {show(key)} is missing", seen=self.path,
                              hint="convert the model again with a current llama.cpp")  # fmt: skip

    def refused(self, kind: str) -> ModelFileError:
        """Return the error for a model of a kind that nybble cannot measure."""
        return ModelFileError("This model has no KV cache that nybble can measure",
                              seen=f"{self.path.name}: {kind}",
                              allowed="a causal language model",
                              hint="name the GGUF of a text generation model")  # fmt: skip

    def wrong(self, key: str, allowed: str) -> ModelFileError:
        """Return the error for a value that is not what is `allowed`."""
        what = f"{self.path.name}: the key {show(key)} has a wrong value"
        return ModelFileError(what, seen=show(self.values[key]), allowed=allowed,
                              hint="convert the model again with a current llama.cpp")  # fmt: skip

    def text(self, key: str) -> str | None:
        """Return a text, or None when the key is absent."""
        value = self.values.get(key)
        if value is None or isinstance(value, str):
            return value
        raise self.wrong(key, "a text")

    def flag(self, key: str) -> bool | None:
        """Return a boolean, or None when the key is absent."""
        value = self.values.get(key)
        if value is None or isinstance(value, bool):
            return value
        raise self.wrong(key, "true or false")

    def integer(self, key: str) -> int | None:
        """Return a whole number of 32 bits, or None when the key is absent."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 32:
            raise self.wrong(key, "a whole number of 32 bits")
        return value

    def required(self, key: str, most: int = MAX_SIZE) -> int:
        """Return a number from 1 to `most`."""
        value = self.integer(key)
        if value is None:
            raise self.missing(key)
        if not 1 <= value <= most:
            raise self.wrong(key, f"1 to {most:,}")
        return value

    def per_layer(self, key: str, n_layers: int) -> tuple[int, ...] | None:
        """Return one size per layer from an array or one number; None when the key is absent."""
        value = self.values.get(key)
        if not isinstance(value, tuple):
            one = self.integer(key)
            value = None if one is None else (one,) * n_layers
        if value is None:
            return None
        sizes = tuple(v for v in value if isinstance(v, int) and 0 <= v <= MAX_SIZE)
        if len(sizes) != len(value) or len(value) != n_layers:
            raise self.wrong(key, f"one size for each of {n_layers} layers")
        return sizes
