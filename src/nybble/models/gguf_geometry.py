"""The geometry of a model from its GGUF header: what each layer keeps, and its weights.

Source: `llama_model_base::load_hparams`, `load_arch_hparams` and `create_memory` of llama.cpp, and
`src/llama-hparams.cpp`; the rules of each architecture stand in `gguf_rules.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nybble.errors import ModelFileError, nearest
from nybble.models import gguf_rules as rules
from nybble.models.file_kinds import show
from nybble.models.geometry import Geometry, Kind, Layer, State
from nybble.models.gguf_keys import Keys
from nybble.models.gguf_kinds import refuse
from nybble.models.gguf_layers import head_dims, sliding_layers, vocabulary
from nybble.models.gguf_shards import read_shards
from nybble.models.gguf_types import GGUFHeader
from nybble.models.gguf_weights import block_of, intermediate, weights
from nybble.models.summary import MAX_LAYERS

_GEMMA3N_OWNERS = 20  # hparams.n_layer_kv_from_start, which no key of the file sets


def geometry_of_gguf(path: Path) -> Geometry:
    """Read the geometry of the GGUF file `path`, all its files when it is split.

    Raises:
        ModelFileError: a file is missing or damaged, a required key is absent or wrong, the model
            keeps no KV cache, or its architecture is not known (the message lists those that are).
    """
    return geometry_of_headers(read_shards(path), path)


def geometry_of_headers(headers: Sequence[GGUFHeader], path: Path) -> Geometry:
    """Read the geometry from headers already read.

    Args:
        headers: those of all files of the model, the first file's first.
        path: the first file's name or address, for messages and for a model without a name.

    Raises:
        ModelFileError: see `geometry_of_gguf`.
    """
    return _Reader(headers, path).geometry()


class _Reader:
    def __init__(self, headers: Sequence[GGUFHeader], path: Path) -> None:
        keys = self.keys = Keys(path, headers[0].metadata)
        arch = keys.text("general.architecture")
        if arch is None:
            raise keys.missing("general.architecture")
        self.arch, self.path = arch, path
        tensors = [t for header in headers for t in header.tensors]
        refuse(keys, arch, tensors)
        self._refuse_unknown()
        self.n_all = keys.required(f"{arch}.block_count", most=MAX_LAYERS)
        self.n_layers = self.n_all - (keys.integer(f"{arch}.nextn_predict_layers") or 0)
        if self.n_layers < 1:
            raise keys.wrong(f"{arch}.nextn_predict_layers", f"below the {self.n_all} blocks")
        self.tensors = [t for t in tensors if (block_of(t) or 0) < self.n_layers]
        self.left_out = sum(t.n_bytes for t in tensors) - sum(t.n_bytes for t in self.tensors)
        self.notes: list[str] = []

    def _refuse_unknown(self) -> None:
        if self.arch in rules.KNOWN:
            return
        near = nearest(self.arch, rules.KNOWN)
        why = rules.REFUSED.get(self.arch, "no rule says which of its layers keep what")
        raise ModelFileError(
            f"The cache of the architecture {show(self.arch)} cannot be planned: {why}",
            seen=f"{self.path.name}: general.architecture {show(self.arch)}",
            allowed=rules.KNOWN,
            hint=f"a model of another architecture{f', for example {near}' if near else ''}",
        )

    def key(self, name: str) -> int | None:
        """A number of the architecture's own keys."""
        return self.keys.integer(f"{self.arch}.{name}")

    def sizes(self, name: str) -> tuple[int, ...] | None:
        """One size per block."""
        return self.keys.per_layer(f"{self.arch}.{name}", self.n_all)

    def geometry(self) -> Geometry:
        arch, keys = self.arch, self.keys
        layers = self.layers()
        used = self.sizes("expert_used_count") or (0,) * self.n_all
        if self.n_all > self.n_layers:
            self.notes.append(
                f"{self.n_all - self.n_layers} prediction blocks (MTP) are left out, with "
                f"{self.left_out:,} bytes of weights: llama.cpp skips them unless it drafts"
            )
        return Geometry(
            name=keys.text("general.name") or self.path.name,
            architecture=arch,
            layers=layers,
            hidden=keys.required(f"{arch}.embedding_length"),
            intermediate=intermediate(self.tensors, used.__getitem__),
            vocabulary=vocabulary(keys, arch),
            context_length=keys.required(f"{arch}.context_length"),
            weights=weights(self.tensors, used.__getitem__),
            notes=tuple(self.notes),
            experts_used=max(used[: self.n_layers]),
        )

    def layers(self) -> tuple[Layer, ...]:
        heads = self.sizes("attention.head_count")
        if heads is None:
            raise self.keys.missing(f"{self.arch}.attention.head_count")
        kv_heads = self.sizes("attention.head_count_kv") or heads
        k_dims = head_dims(self.keys, self.arch, "key", heads)
        v_dims = head_dims(self.keys, self.arch, "value", heads)
        window, slides = self.windows()
        recurrent = self.recurrent(kv_heads)
        latent = self.latent()
        state = self.state(heads[0]) if any(recurrent) else None
        both = rules.RECURRENT.get(self.arch) == "all"
        names = {t.name for t in self.tensors}
        owners = self.owners()
        made: list[Layer] = []
        for i in range(self.n_layers):
            kind: Kind = "sliding" if slides[i] else "global"
            if i >= owners:
                kind = "shared"
            elif recurrent[i] and not both:
                made.append(Layer("recurrent", state=state))
                continue
            elif not kv_heads[i] or (self.arch.startswith("nemotron_h") and self.ffn(i)):
                made.append(Layer("none"))
                continue
            elif latent:
                kind = "latent"
            made.append(
                Layer(
                    kind, heads[i], kv_heads[i], k_dims[i], 0 if latent else v_dims[i],
                    window=window if kind == "sliding" else None,
                    source=owners - (2 if slides[i] else 1) if kind == "shared" else None,
                    k_is_v=self.arch == "gemma4" and kind != "shared"
                    and not names & {f"blk.{i}.attn_v.weight", f"blk.{i}.attn_qkv.weight"},
                    rope_dim=(self.key("rope.dimension_count") or 0) if latent else 0,
                    state=state if both else None,
                    sinks=f"blk.{i}.attn_sinks.weight" in names,
                )
            )  # fmt: skip
        if not any(layer.k_width for layer in made):
            raise self.keys.refused(f"{show(self.arch)} without attention heads")
        return tuple(made)

    def windows(self) -> tuple[int | None, tuple[bool, ...]]:
        """The window in effect, and which blocks slide."""
        arch, none = self.arch, (False,) * self.n_all
        named = self.key("attention.sliding_window")
        rule = rules.SLIDING.get(arch)
        if arch in ("lfm2",) and named:
            return named, (True,) * self.n_all
        if rule is None or (rule.layers and self.n_layers != rule.layers):
            if named:
                self.notes.append(f"llama.cpp ignores the file's window of {named:,} for {arch}")
            return None, none
        if rule.needed and not named:
            if named is None:
                raise self.keys.missing(f"{arch}.attention.sliding_window")
            raise self.keys.wrong(f"{arch}.attention.sliding_window", "1 or more")
        window = rule.default if named is None else rule.forced if named and rule.forced else named
        if not window:
            return None, none
        if window != named:
            found = "no window" if named is None else f"a window of {named:,}"
            self.notes.append(f"window of {window:,}: llama.cpp's own, the file has {found}")
        pattern = f"{arch}.attention.sliding_window_pattern"
        if rule.listed and not isinstance(self.keys.values.get(pattern, ()), tuple):
            raise self.keys.wrong(pattern, "a list with an entry for each block")
        if pattern not in self.keys.values and not rule.listed:
            self.notes.append(f"which layers slide: llama.cpp's pattern for {arch}")
        return window, sliding_layers(self.keys, arch, self.n_all)

    def owners(self) -> int:
        """Layers that have a cache of their own, counted from the first."""
        if self.arch == "gemma3n":
            return _GEMMA3N_OWNERS
        shared = (self.key("attention.shared_kv_layers") or 0) if self.arch == "gemma4" else 0
        if shared and self.n_all - shared < 2:
            raise self.keys.wrong("gemma4.attention.shared_kv_layers", f"up to {self.n_all - 2}")
        return self.n_all - shared

    def latent(self) -> bool:
        """Whether the cache is of MLA's latents; old files keep keys and values unpacked."""
        if self.arch not in rules.LATENT:
            return False
        return bool(self.key("attention.key_length_mla") and self.key("attention.value_length_mla"))

    def recurrent(self, kv_heads: tuple[int, ...]) -> tuple[bool, ...]:
        """Which blocks keep a recurrent state."""
        rule, n = rules.RECURRENT.get(self.arch), self.n_layers
        if rule is None:
            return (False,) * n
        if rule == "all":
            return (True,) * n
        if rule == "interval":
            listed = self.sizes("attention.recurrent_layers")
            if listed is not None:
                return tuple(map(bool, listed[:n]))
            every = self.key("full_attention_interval")
            every = rules.INTERVALS.get(self.arch, 4) if every is None else every
            if not every:
                raise self.keys.wrong(f"{self.arch}.full_attention_interval", "1 or more")
            return tuple((i + 1) % every != 0 for i in range(n))
        ffn = rule == "no kv heads and no ffn"
        return tuple(not kv_heads[i] and not (ffn and self.ffn(i)) for i in range(n))

    def ffn(self, i: int) -> int:
        """Width that the file gives to the feed-forward block of a layer."""
        return (self.sizes("feed_forward_length") or (0,) * self.n_all)[i]

    def state(self, heads: int) -> State:
        """Elements a sequence keeps; n_embd_r and n_embd_s of llama-hparams.cpp."""
        if cache := self.key("shortconv.l_cache"):
            return State(self.keys.required(f"{self.arch}.embedding_length") * (cache - 1), 0)
        kernel = self.key("ssm.conv_kernel") or 0
        if kda := self.key("kda.head_dim"):
            return State(3 * (kernel - 1 if kernel else 3) * heads * kda, kda * kda * heads)
        if self.arch == "minimax-01":
            dim = self.key("attention.key_length") or 0
            dim = dim or self.keys.required(f"{self.arch}.embedding_length") // max(heads, 1)
            return State(0, dim * dim * heads)
        inner = self.keys.required(f"{self.arch}.ssm.inner_size")
        size = self.keys.required(f"{self.arch}.ssm.state_size")
        groups = 0 if self.arch == "jamba" else self.key("ssm.group_count") or 0
        return State(max(kernel - 1, 0) * (inner + 2 * groups * size), size * inner)
