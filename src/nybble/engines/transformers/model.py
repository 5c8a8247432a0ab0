"""A causal LM of transformers whose batch rows are lanes: one KV setting each, weights read once.

Weights are float32 on the CPU and bf16 on a GPU; the head is always applied in float32, a part of
the vocabulary at a time, since bf16 logits alone would move the KLD by 1e-3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask
from transformers.modeling_outputs import BaseModelOutputWithPast

from nybble.engines.transformers.attention import NAME, Lanes, Watcher, attend, reading
from nybble.errors import EngineError
from nybble.formats.codec import GGUF_PERMUTED, Layer, Through
from nybble.formats.kvtype import KVType

_VOCABULARY = 32_768  # rows of the head converted to float32 at a time

AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


@dataclass(frozen=True)
class LayerShape:
    """One layer's cache, as the model class itself builds it.

    Attributes:
        layer: shape of what it owns; None where it reads another layer's.
        owner: index of the layer whose keys it reads.
        window: tokens it looks back, or None for all.
    """

    layer: Layer | None
    owner: int
    window: int | None


class FloatHead(torch.nn.Linear):
    """The output matrix, applied in float32 whatever the weights are.

    It holds the very parameters of the layer it replaces, so tied embeddings stay tied.
    """

    def __init__(self, head: torch.nn.Linear) -> None:
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = head.in_features, head.out_features
        self.weight, self.bias = head.weight, head.bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits float32 [..., vocabulary] of hidden states [..., hidden]."""
        weight, bias = self.weight, self.bias
        if weight.dtype == torch.float32:
            return F.linear(hidden.float(), weight, bias)
        out = torch.empty(*hidden.shape[:-1], len(weight), device=hidden.device)
        for start in range(0, len(weight), _VOCABULARY):
            rows = slice(start, start + _VOCABULARY)
            some = None if bias is None else bias[rows].float()
            out[..., rows] = F.linear(hidden.float(), weight[rows].float(), some)
        return out


class TorchModel:
    """A loaded model and the shapes of its cache.

    Args:
        model: loaded with attn_implementation NAME.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: Any = model.eval()  # type: ignore[no-untyped-call]
        # Llama 4's text model has the prefix of its multimodal class and not the attribute.
        self._base: Any = getattr(model, model.base_model_prefix, None) or self._model.model
        head = self._model.get_output_embeddings()
        if isinstance(head, torch.nn.Linear):
            self._model.set_output_embeddings(FloatHead(head))
        self.device = next(model.parameters()).device
        text = self._model.config.get_text_config()
        self.n_vocab = int(text.vocab_size)
        self.gguf_order = text.model_type in GGUF_PERMUTED
        self._owners: dict[int, int] = {}
        self._output: type[Any] = BaseModelOutputWithPast
        self.shapes = self._shapes(int(text.num_hidden_layers))
        self.layers = [s.layer for s in self.shapes if s.layer is not None]
        self._slots = {layer.index: i for i, layer in enumerate(self.layers)}

    @torch.inference_mode()
    def _shapes(self, count: int) -> list[LayerShape]:
        """Run two tokens and look at what reaches attention: no JSON key can mislead that."""
        seen: dict[int, tuple[int, int, int]] = {}
        windows: dict[int, int | None] = {}
        source: dict[int, int] = {}
        first: dict[int, int] = {}  # data pointer of keys -> the layer that made them
        held: list[torch.Tensor] = []  # keeps pointers from being used again

        def watch(module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
            index = int(module.layer_idx)
            held.append(k)
            seen[index] = (k.shape[1], k.shape[-1], v.shape[-1])
            source[index] = first.setdefault(k.data_ptr(), index)

        ids = torch.zeros(1, 2, dtype=torch.long, device=self.device)
        with reading(watch=watch, windows=windows):
            self._output = type(self._base(input_ids=ids, use_cache=False))
        if not seen:
            raise EngineError(
                "this model does not call transformers' attention interface",
                seen=type(self._model).__name__,
                allowed="models whose attention uses AttentionInterface",
            )
        self._owners = source
        return [
            LayerShape(Layer(i, count, *seen[i]) if source[i] == i else None, source[i], windows[i])
            for i in sorted(seen)
        ]

    def cells(self, context: int) -> list[int]:
        """Tokens each owning layer holds at a context: one window where it slides."""
        return [
            min(context, s.window) if s.window else context
            for s in self.shapes
            if s.layer is not None
        ]

    def owner(self, module: Any) -> int:
        """Index of the layer whose keys an attention module reads."""
        return self._owners[int(module.layer_idx)]

    def _slot(self, module: Any) -> int:
        return self._slots[self.owner(module)]

    @torch.inference_mode()
    def hidden(self, tokens: Sequence[int], lanes: Lanes) -> torch.Tensor:
        """Last hidden states of one text under every lane, [lanes, tokens, hidden].

        Args:
            tokens: ids of the text.
            lanes: for each lane, the stores of `layers` in order.
        """
        ids = torch.tensor(tokens, dtype=torch.long, device=self.device)
        return self.states(ids[None].expand(len(lanes.stores), -1), lanes)

    def states(
        self, ids: torch.Tensor, lanes: Lanes | None, through: Through = KVType.roundtrip
    ) -> torch.Tensor:
        """Last hidden states [batch, n, hidden] of ids [batch, n], with gradients where wanted."""
        with reading(lanes=lanes, slot=self._slot, through=through):
            out: torch.Tensor = self._base(input_ids=ids, use_cache=False).last_hidden_state
        return out

    @torch.inference_mode()
    def watch(self, tokens: Sequence[int], watcher: Watcher) -> None:
        """Run a text as it is and show every layer's queries, keys and values."""
        ids = torch.tensor(tokens, dtype=torch.long, device=self.device)
        with reading(watch=watcher):
            self._base(input_ids=ids[None], use_cache=False)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `head`; without gradients."""
        return self.head(hidden)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 logits [n, vocabulary] of hidden states [n, hidden], by the model's own head.

        The model's forward is run over a base that only hands the states back, so soft caps,
        scales and whatever else its class does to logits are its own code.
        """
        given = self._output(last_hidden_state=hidden[None])
        forward = self._base.forward
        self._base.forward = lambda *args, **kwargs: given
        try:
            ids = torch.zeros(1, hidden.shape[0], dtype=torch.long, device=self.device)
            out: torch.Tensor = self._model(input_ids=ids, use_cache=False).logits[0]
        finally:
            self._base.forward = forward
        return out.float()
