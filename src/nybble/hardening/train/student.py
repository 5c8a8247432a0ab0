"""The model in training: reads its cache through the KV types, learns from itself unquantized."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nybble.engines.transformers.packages import transformers

transformers()  # shuts the network before anything of it is imported

import torch  # noqa: E402

from nybble.engines.transformers.attention import Lanes  # noqa: E402
from nybble.engines.transformers.model import TorchModel  # noqa: E402
from nybble.formats import check_head_size, parse  # noqa: E402
from nybble.formats.codec import layer_stores  # noqa: E402
from nybble.hardening.families import Family  # noqa: E402
from nybble.hardening.sites import Site  # noqa: E402
from nybble.hardening.train.divergence import divergences, mean_divergence  # noqa: E402
from nybble.hardening.train.parameters import (  # noqa: E402
    Fold,
    chosen,
    group,
    merged,
    trainable,
)
from nybble.hardening.train.request import TrainRequest  # noqa: E402
from nybble.hardening.train.straight import straight_through  # noqa: E402
from nybble.hardening.train.tensors import spread, whole  # noqa: E402

Tensor = torch.Tensor


class _Module(torch.nn.Module):
    """What accelerate moves and wraps: all that is computed with, and losses as forward passes."""

    def __init__(
        self, student: KVStudent, model: torch.nn.Module, fold: Fold, teacher: torch.nn.Module
    ) -> None:
        super().__init__()
        self.model, self.fold, self.teacher = model, fold, teacher
        # Of these FSDP makes one unit each; class names, as accelerate wants them.
        inside = {type(module).__name__ for module in model.modules()}
        self._no_split_modules = inside & set(getattr(model, "_no_split_modules", None) or ())
        self._student = student

    def forward(self, ids: Tensor, setting: str, positions: Tensor | None) -> Tensor:
        """Mean KL at positions, or the KL of every scored token."""
        return self._student.compute(ids, setting, positions)


class KVStudent:
    """Student and frozen teacher over one set of frozen weights.

    Args:
        model: loaded with attn_implementation attention.NAME; frozen, all of it float32.
        family: its rule.
        sites: its layers, named as the model names its parameters.
        request: scope and settings.
    """

    def __init__(
        self, model: Any, family: Family, sites: Sequence[Site], request: TrainRequest
    ) -> None:
        self._request = request
        self._student = TorchModel(model)
        trained = chosen(model, request.scope)
        # Shared where nothing is trained: a second copy of those weights would only cost memory.
        memo = {id(p): p for n, p in model.named_parameters() if n not in trained}
        memo |= {id(b): b for b in model.buffers()}
        self._original = copy.deepcopy(model, memo).requires_grad_(False)
        self._teacher = TorchModel(self._original)
        if request.stored:  # torchao is imported only where it is used
            from nybble.hardening.train.weights import fake_quantize_weights

            fake_quantize_weights(model, request.stored)
            trained = chosen(model, request.scope)
        fold = Fold(model, family, sites)
        groups = trainable(model, trained, request.lora, request.seed)
        self.groups = [group("scales", fold.parameters()), *groups]
        self._names = sorted({*trained, *fold.names})
        self.module: torch.nn.Module = _Module(self, model, fold, self._original)
        self._fold, self._model = fold, model
        layers = self._student.layers
        for setting in request.kv_settings:
            check_head_size(setting, {y.k_dim for y in layers}, {y.v_dim for y in layers})
        self._stores: dict[str, Any] = {}
        # The teacher's states of held-out text; None where they are not to be kept.
        self._known: dict[str, Tensor] | None = {}

    def _lanes(self, text: str, ids: Tensor) -> Lanes | None:
        setting = parse(text)
        if not setting.quantized:
            return None  # what the teacher reads
        if text not in self._stores:
            gguf, device = self._student.gguf_order, ids.device  # FSDP moves the model there
            self._stores[text] = [layer_stores(setting, layer, gguf=gguf, device=device)
                                  for layer in self._student.layers]  # fmt: skip
        return Lanes([self._stores[text]] * len(ids))

    def loss(self, ids: Tensor, setting: str, positions: Tensor) -> Tensor:
        """Mean forward KL of ids [batch, context] at positions [m]; differentiable."""
        loss: Tensor = self.module(ids, setting, positions)
        return loss

    @torch.no_grad()
    def held_out(self, ids: Tensor, setting: str) -> Tensor:
        """KLD of every scored token, [n, scored]."""
        found: Tensor = self.module(ids, setting, None)
        return found

    def compute(self, ids: Tensor, setting: str, positions: Tensor | None) -> Tensor:
        """The forward pass that `module` stands for; mixed precision is for training alone.

        A model in bf16 has a KLD of 1e-3 from itself in float32 (Gemma 3 270M), which a good cache
        has too, so on held-out text everything is float32. To a gradient that is little noise, and
        a float32 head over a large vocabulary costs more than all blocks do.
        """
        lanes = self._lanes(setting, ids)
        heads = (self._student.head, self._teacher.head)
        float32 = torch.autocast(ids.device.type, enabled=False)
        if positions is None:
            with float32:
                states = self._student.states(ids, lanes)[:, self._request.start :]
                reference = self._held_out_states(ids)
                found = divergences(states.flatten(0, 1), reference.flatten(0, 1), *heads)
            return found.view(len(ids), -1)
        states = self._student.states(ids, lanes, straight_through)[:, positions]
        with torch.no_grad():
            reference = self._teacher.states(ids, None)[:, positions]
        return mean_divergence(states.flatten(0, 1), reference.flatten(0, 1), *heads)

    def _held_out_states(self, ids: Tensor) -> Tensor:
        """The teacher never changes: its states of held-out text are computed once."""
        if self._known is None:
            return self._teacher.states(ids, None)[:, self._request.start :]
        key = hashlib.sha256(ids.cpu().numpy().tobytes()).hexdigest()
        if key not in self._known:
            states = self._teacher.states(ids, None)[:, self._request.start :]
            self._known[key] = states.clone()
        return self._known[key]

    def set_scales(self, scales: Mapping[int, npt.NDArray[np.float64]]) -> None:
        """Start from the e of a fold, [sets, head_dim] by layer that owns keys, not from 1."""
        self._fold.set_scales(scales)

    def before_sharding(self) -> None:
        """Give the teacher weights of its own: two units of FSDP cannot have a shard in common."""
        ours = {id(t) for t in (*self._model.parameters(), *self._model.buffers())}
        own: dict[int, Tensor] = {}  # tied ones stay tied
        for module in self._original.modules():
            for name, tensor in {**module._parameters, **module._buffers}.items():
                if id(tensor) in ours:
                    setattr(module, name, own.setdefault(id(tensor), copy.deepcopy(tensor)))
        # A pass of which one process has the outcome already would leave the others waiting.
        self._known = None

    def trained(self) -> Mapping[str, Tensor]:
        """Trained parameters by name, whole; every process calls it."""
        return {n: whole(p.detach()) for n, p in self._parameters().items()}

    @torch.no_grad()
    def load_trained(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy such tensors into the parameters; every process calls it."""
        for name, parameter in self._parameters().items():
            parameter.copy_(spread(tensors[name], parameter))

    def _parameters(self) -> dict[str, torch.nn.Parameter]:
        """Those in training, of the module as accelerate left it, by the names it had before."""
        named = self.module.named_parameters()
        return {n.removeprefix("module."): p for n, p in named if p.requires_grad}

    def changed(self) -> dict[str, Tensor]:
        """Float32 tensors on the CPU that make the original the hardened model, by its names.

        Updates are merged and scales folded in. Every process calls it.
        """
        found = {}
        for name in self._names:
            owner, _, attribute = name.rpartition(".")
            weight = merged(self._model.get_submodule(owner), attribute)
            found[name] = weight.to("cpu", torch.float32, copy=True)
        self._fold.folded(found)
        return found
