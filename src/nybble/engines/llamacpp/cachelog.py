"""What llama.cpp says about the cache it really made, read from its own log.

No API of llama.cpp tells the types, the rotation or the cells in effect; the lines of
llama-kv-cache.cpp do. A setting that is not what was asked for raises, so no result can come
from a cache other than the one named.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nybble.errors import EngineError
from nybble.formats import KVSetting

# Numbers of a sane length only: a log may be anybody's.
_MIB = r"\s*(\d{1,9}\.\d{1,3}) MiB"
_SIZE = re.compile(
    rf"size ={_MIB} \(\s*([1-9]\d{{0,8}}) cells,\s*(\d{{1,5}}) layers,.*?\)"
    rf", K \((\w{{1,32}})\):{_MIB}, V \((\w{{1,32}})\):{_MIB}"
)
_SUBCACHE = re.compile(r"creating\s+(non-SWA|SWA) KV cache")
_ROTATION = re.compile(r"\bn_rot_([kv]) = (\d{1,6})")


@dataclass(frozen=True)
class SubCache:
    """One allocation of the cache: the global layers, or the sliding ones.

    Attributes:
        kind: "global" or "sliding".
        cells: tokens it holds.
        layers: layers in it.
        k_type: K type in effect.
        v_type: V type in effect.
        k_mib: MiB of K, as logged (two decimals).
        v_mib: MiB of V.
    """

    kind: str
    cells: int
    layers: int
    k_type: str
    v_type: str
    k_mib: float
    v_mib: float


@dataclass(frozen=True)
class AppliedCache:
    """The cache in effect: its allocations, and the rotation width of K and V (0: none)."""

    subcaches: tuple[SubCache, ...]
    rotation_k: int
    rotation_v: int

    @property
    def n_bytes(self) -> int:
        """Bytes of all allocations, by MiB of two decimals."""
        return round(sum(sub.k_mib + sub.v_mib for sub in self.subcaches) * 2**20)

    def told(self) -> str:
        """Types, cells, bytes and rotation in words."""
        parts = [f"{s.k_type}/{s.v_type} in {s.layers} {s.kind} layers ({s.cells:,} cells, "
                 f"{s.k_mib + s.v_mib:,.2f} MiB)" for s in self.subcaches]  # fmt: skip
        turned = f"rotated by {self.rotation_k}/{self.rotation_v}"
        return ", ".join([*parts, turned if self.rotation_k or self.rotation_v else "not rotated"])

    def verify(self, setting: KVSetting) -> None:
        """Compare with what was asked for.

        Raises:
            EngineError: another type than asked for, or rotation where none was wanted.
        """
        for sub in self.subcaches:
            if (sub.k_type, sub.v_type) != (setting.k, setting.v):
                raise EngineError(
                    "llama.cpp did not apply the KV setting",
                    seen=f"{sub.k_type}/{sub.v_type} in the {sub.kind} layers",
                    allowed=str(setting),
                )
        if not setting.rotation and (self.rotation_k or self.rotation_v):
            raise EngineError(
                "llama.cpp rotates although rotation was switched off",
                seen=f"rotation {self.rotation_k}/{self.rotation_v}",
                allowed=str(setting),
            )
        if not self.subcaches:
            raise EngineError(
                "llama.cpp's log does not show a KV cache; this kind of model is not supported",
                seen=str(setting),
                allowed="models with attention layers",
            )


def parse_cache_log(log: str) -> AppliedCache:
    """Read the cache lines of one context's log."""
    subcaches: list[SubCache] = []
    kind = "global"
    rotation = {"k": 0, "v": 0}
    for line in log.splitlines():
        if found := _SUBCACHE.search(line):
            kind = "sliding" if found[1] == "SWA" else "global"
        elif found := _SIZE.search(line):
            subcaches.append(
                SubCache(
                    kind, int(found[2]), int(found[3]), found[4], found[6],
                    float(found[5]), float(found[7]),
                )
            )  # fmt: skip
        elif found := _ROTATION.search(line):
            rotation[found[1]] = max(rotation[found[1]], int(found[2]))
    return AppliedCache(tuple(subcaches), rotation["k"], rotation["v"])
