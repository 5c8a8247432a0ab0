"""How vLLM groups layers: pages of one size for all, block tables by group.

All layers' pages come out of one pool, so vLLM makes them equal: a smaller page takes more tokens
if that comes out even, else it is padded to the largest. Layers of one kind are then cut into
groups of as many layers as the rarest kind has; a block is one page in each layer of a group.

Source: vLLM 0.33.0, `v1/core/kv_cache_planning.py` (unify_kv_cache_spec_page_size,
_get_kv_cache_groups_uniform_page_size, _get_kv_cache_bytes_per_block) and
`v1/kv_cache_interface.py` (max_memory_usage_bytes of the specs). Layouts with blocks outermost,
which pack mixed pages without padding, are no backend's default for the models planned here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["full", "latent", "sliding", "state"]


@dataclass(frozen=True)
class Spec:
    """One layer's pages on one card; layers with equal ones share a block table.

    Attributes:
        kind: what is kept: all tokens, all latents, a window, or a state.
        shape: heads, head sizes and types: what has to be equal besides the sizes.
        block: tokens of a page; 0 for a state.
        page: bytes of a page as it is allocated.
        content: bytes of a page that are used.
        window: of a sliding layer.
    """

    kind: Kind
    shape: tuple[object, ...]
    block: int
    page: int
    content: int
    window: int | None = None

    @property
    def uniform(self) -> tuple[object, ...]:
        """Layers with the same of this always need the same number of tokens."""
        base = "full" if self.kind == "latent" else self.kind
        return (base, self.block, self.window, self.page if self.kind == "state" else 0)


@dataclass(frozen=True)
class Group:
    """Layers that share a block table.

    Attributes:
        specs: of its layers.
    """

    specs: tuple[Spec, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of one block: a page in each layer."""
        return sum(spec.page for spec in self.specs)

    def blocks(self, tokens: int, in_flight: int, states: int) -> int:
        """Blocks one sequence reserves.

        Args:
            tokens: of the sequence.
            in_flight: tokens scheduled and not yet settled, whose blocks are not freed.
            states: state pages a sequence holds.
        """
        spec = self.specs[0]
        if spec.kind == "state":
            return states
        if spec.window is None:
            return -(-tokens // spec.block)
        # One more block: a window need not start where a block does.
        return -(-min(spec.window - 1 + in_flight, tokens) // spec.block) + 1


def group(specs: Mapping[int, Spec]) -> list[Group]:
    """Split layers into groups, as `get_kv_cache_groups` does."""
    if not specs:
        return []
    if len({spec.uniform for spec in specs.values()}) == 1:
        return [Group(tuple(specs.values()))]
    kinds: dict[Spec, int] = {}
    for spec in one_page_size(specs).values():
        kinds[spec] = kinds.get(spec, 0) + 1
    fewest, most = min(kinds.values()), max(kinds.values())
    size = most if most < fewest * 1.5 else fewest
    found = []
    for spec, n in kinds.items():
        n_groups = -(-n // size)
        # Layers are dealt in turn, so that the first groups may have one more.
        sizes = [n // n_groups + (i < n % n_groups) for i in range(n_groups)]
        found += [Group((spec,) * layers) for layers in sizes]
    return found


def one_page_size(specs: Mapping[int, Spec]) -> dict[int, Spec]:
    """Make all pages as large as the largest: by more tokens, or by padding."""
    largest = max(spec.page for spec in specs.values())
    found = {}
    for layer, spec in specs.items():
        times, rest = divmod(largest, spec.page)
        if spec.kind == "state" or rest:
            found[layer] = replace(spec, page=largest)
        else:
            found[layer] = replace(spec, page=largest, block=spec.block * times,
                                   content=spec.content * times)  # fmt: skip
    return found


def block_bytes(groups: list[Group]) -> int:
    """Bytes of a block of the pool: those of the widest group."""
    return max(found.n_bytes for found in groups)
