"""Stream a model's keys, queries and values, and keep their moments (formats/calibration.py)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nybble.engines.transformers.model import TorchModel
from nybble.errors import EngineError
from nybble.formats.calibration import Calibration, LayerCalibration, LayerMoments
from nybble.formats.energies import SKIP

MOST_TOKENS = 4096


class _Sums:
    """Running sums of one layer, in float64."""

    def __init__(self) -> None:
        self.n = 0
        self.k: Any = 0
        self.kk: Any = 0
        self.qq: Any = 0
        self.v: Any = 0
        self.vv: Any = 0

    def add(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Add one text: query [heads, n, D], key and value [kv_heads, n, D]."""
        q, k, v = (x[:, SKIP:].double() for x in (query, key, value))
        group = q.reshape(len(k), -1, q.shape[-1])  # the query heads that read one KV head
        self.n += k.shape[1]
        self.k = self.k + k.sum(1)
        self.kk = self.kk + k.mT @ k
        self.qq = self.qq + group.mT @ group
        self.v = self.v + v.sum(1)
        self.vv = self.vv + v.square().sum((1, 2))

    def moments(self) -> LayerMoments:
        """Means and central moments."""
        mean, value_mean = self.k / self.n, self.v / self.n
        keys = self.kk / self.n - mean[:, :, None] * mean[:, None]
        spread = self.vv / self.n - value_mean.square().sum(-1)
        size = (spread / value_mean.shape[-1]).clamp(min=0).sqrt()
        return LayerMoments(mean, keys, self.qq / self.n, value_mean, size)


def calibrate(
    model: TorchModel,
    texts: Sequence[npt.NDArray[np.int32]],
    fingerprint: str,
    on_text: Callable[[int], None] = lambda tokens: None,
) -> Calibration:
    """Statistics over texts, one pass each; nothing but sums is kept.

    Args:
        model: the model.
        texts: token ids; at most MOST_TOKENS in all are read.
        fingerprint: of the model's weights.
        on_text: told the tokens of every text that is done.

    Raises:
        EngineError: too little text, or statistics that are not finite.
    """
    sums = {layer.index: _Sums() for layer in model.layers}
    digest = hashlib.sha256()
    left = MOST_TOKENS

    def watch(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        owner = model.owner(module)
        # A layer that reads another's keys adds its queries, and the same keys once more.
        sums[owner].add(query[0], key[0], value[0])

    for text in texts:
        tokens = text[:left]
        if len(tokens) <= SKIP:
            break
        model.watch(tokens.tolist(), watch)
        digest.update(np.ascontiguousarray(tokens, dtype="<i4").tobytes())
        left -= len(tokens)
        on_text(len(tokens))
    used = MOST_TOKENS - left
    if used < 256:
        raise EngineError(
            "too little text to calibrate on", seen=f"{used:,} tokens", allowed="256 or more",
            hint="longer --text",
        )  # fmt: skip
    layers = {}
    for index, total in sums.items():
        moments = total.moments()
        if not all(torch.isfinite(m).all() for m in vars(moments).values()):
            raise EngineError(
                "the model gives keys or queries that are not finite",
                seen=f"layer {index}",
                hint="check the weights; a float32 run (--device cpu) tells overflow from damage",
            )
        layers[index] = LayerCalibration.fit(moments)
    return Calibration(layers, fingerprint, used, digest.hexdigest())
