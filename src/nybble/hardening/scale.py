"""One change to one tensor of a model file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Scale:
    """Multiply the rows of a tensor.

    Attributes:
        tensor: its name in the file.
        factors: float64 [rows]: one for every element of a vector, one for every output channel
            of a matrix (a row of the safetensors tensor, ne[0] elements of the GGUF's).
        offset: added to a stored value before it is multiplied and taken off after; 1 where a
            class computes x * (1 + w), as Gemma 3's does of its safetensors.
    """

    tensor: str
    factors: npt.NDArray[np.float64]
    offset: float = 0.0
