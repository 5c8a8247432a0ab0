"""Weights as a quantized GGUF will hold them, while they are trained.

torchao's quantization-aware layers call a fake quantizer of our own. torchao's 4-bit grid (a scale
of absmax / 7.5 kept in float32, other rounding) is not what llama.cpp stores; here the codec that
trains is the codec that deploys, bit for bit, so a trained file loses nothing when it is written.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils import parametrize

from nybble.engines.transformers.packages import quiet
from nybble.errors import MissingExtraError, NybbleError
from nybble.formats.pack import blocks
from nybble.formats.registry import kv_type
from nybble.hardening.names import INSTALL
from nybble.hardening.train.straight import straight_through

KINDS = ("q4_0", "q8_0")  # a scale and no offset, which is what the gradient assumes

# Share of a matrix on boundaries: 0.001 (q4_0) to 0.016 (q8_0) by chance, 0.5 for Q5_0 in q4_0.
_MANY = 0.05
_MATRIX = re.compile(r"(?:^|\.)layers\.\d+\.(?:self_attn|mlp)\.\w+_proj$")


def _torchao() -> Any:
    try:
        with quiet():
            return importlib.import_module("torchao.quantization.qat")
    except ImportError as e:
        raise MissingExtraError("training quantized weights needs torchao", hint=INSTALL) from e


_qat: Any = _torchao()


@dataclass(frozen=True)
class StoredConfig(_qat.FakeQuantizeConfigBase):  # type: ignore[misc]
    """What torchao asks a fake quantizer to say of itself."""

    kind: str


class StoredWeights(_qat.FakeQuantizerBase):  # type: ignore[misc]
    """Gives a matrix [rows, inputs] as a GGUF stores it: blocks along the inputs."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.config = StoredConfig(kind)
        self.enabled = True

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The values read back, in the dtype of `weight`; exact in float32."""
        if not self.enabled:
            return weight
        return straight_through(kv_type(self.config.kind), weight)


def fake_quantize_weights(
    model: torch.nn.Module, kind: str = "q4_0", head: bool = False
) -> list[str]:
    """Let the attention and MLP matrices of every layer be used as a GGUF would store them.

    The parameters stay what they are, under their names, and go on being trained.

    Args:
        model: a causal language model of transformers; changed in place.
        kind: "q4_0" or "q8_0".
        head: the embeddings and the output matrix too. Their parameters are then named
            `...parametrizations.weight.original`; `real_weights` has the names of before.

    Returns:
        Names of the parameters, for `export_gguf` to store as `kind`.

    Raises:
        NybbleError: an unknown kind, no such matrices, experts, or a matrix whose rows cannot be
            cut into blocks or that is not a plain Linear layer any more.
    """
    if kind not in KINDS:
        raise NybbleError("weights cannot be trained in this type", seen=kind, allowed=KINDS)
    # Of a multimodal model the part that reads text; its other towers have layers of such names.
    get_decoder: Any = getattr(model, "get_decoder", lambda: model)
    text: torch.nn.Module = get_decoder()
    if any(".experts." in name for name, _ in text.named_parameters()):
        raise NybbleError(
            "the weights of experts cannot be trained as quantized ones",
            seen=type(model).__name__, allowed="models whose MLP is one for all tokens",
            hint="train without quantized weights",
        )  # fmt: skip
    inside = set(text.modules())
    found = {name: module for name, module in model.named_modules()
             if module in inside and _MATRIX.search(name)}  # fmt: skip
    ends = _ends(model) if head else {}
    if not found:
        raise NybbleError("the model has no attention and MLP matrices to quantize",
                          seen=type(model).__name__,
                          allowed="layers with self_attn.*_proj and mlp.*_proj")  # fmt: skip
    for name, module in (found | ends).items():
        _check(name, module, kind, plain=name in found)
    for linear in (found | ends).values():
        off_boundaries(linear.weight, kind)
    for name, linear in found.items():
        layer = _qat.FakeQuantizedLinear.from_linear(linear)
        layer.weight_fake_quantizer = StoredWeights(kind)
        model.set_submodule(name, layer)
    for module in ends.values():
        parametrize.register_parametrization(module, "weight", StoredWeights(kind))
    return list(real_weights(model))


@torch.no_grad()
def off_boundaries(weight: torch.Tensor, kind: str) -> None:
    """Move weights off the boundaries between stored values, in place, where many lie on them.

    Half the weights of a Q5_0 file lie so for q4_0: its blocks have half the step and the same
    extreme value. The least update then rounds all of them the way the gradient points, a step of
    half a bit for half the weights: Gemma 3 270M went from a KLD of 0.33 to 4.3 by its first
    step, whatever the learning rate. They are moved to a random side, up to a quarter of the gap.
    A matrix that was not quantized before, with few of its weights there, stays as it is.
    """
    if weight.is_meta:
        return
    codec = kv_type(kind)
    w = blocks(weight.float(), codec.block)
    extreme = w.abs().amax(-1, keepdim=True)
    # Far below a step and far above float32's resolution; the value that sets the scale stays.
    nudge = torch.where(w.abs() == extreme, 0.0, extreme * 2.0**-14)
    up, down = (blocks(codec.roundtrip((w + n).reshape(weight.shape)), codec.block)
                for n in (nudge, -nudge))  # fmt: skip
    gap = (up - down).abs()
    if (gap > 0).float().mean() < _MANY:
        return
    made = torch.Generator().manual_seed(0)  # the same start for the same file
    draw = torch.rand(w.shape, generator=made).to(w.device) - 0.5
    moved = w + 0.5 * gap * draw
    weight.copy_(moved.reshape(weight.shape))


def real_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights behind the quantized ones, by their names before `fake_quantize_weights`.

    Stored as the kind they were trained in, they give exactly the values the model computes with.
    Tied matrices stand once, under the first name.
    """
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            quantizer = module.parametrizations["weight"][0]
            weight = module.parametrizations["weight"].original
        else:
            quantizer = getattr(module, "weight_fake_quantizer", None)
            weight = getattr(module, "weight", None)
        if isinstance(quantizer, StoredWeights) and id(weight) not in seen:
            seen.add(id(weight))
            found[f"{name}.weight"] = weight.detach()
    return found


def _ends(model: Any) -> dict[str, torch.nn.Module]:
    """The embeddings and the output matrix, by name."""
    wanted = (model.get_input_embeddings(), model.get_output_embeddings())
    return {name: module for name, module in model.named_modules() if module in wanted}


def _check(name: str, module: Any, kind: str, *, plain: bool) -> None:
    if plain and type(module) is not torch.nn.Linear:  # from_linear would drop what it adds
        raise NybbleError("a matrix is not a plain Linear layer, so its weights cannot be trained "
                          "as quantized ones", seen=f"{name}: {type(module).__name__}",
                          allowed="Linear", hint="train without quantized weights")  # fmt: skip
    size, block = module.weight.shape[-1], kv_type(kind).block
    if size % block:
        raise NybbleError(
            f"a matrix's rows cannot be cut into blocks of {kind}", seen=f"{name}: {size:,} inputs",
            allowed=f"multiples of {block}", hint="train without quantized weights",
        )  # fmt: skip
