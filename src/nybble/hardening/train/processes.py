"""accelerate: one process or several, mixed precision, and what the loop has no use for."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.distributed.fsdp import FSDPModule

from nybble.errors import MissingExtraError, NybbleError
from nybble.hardening.names import INSTALL
from nybble.hardening.train.interface import Student, Tensor
from nybble.hardening.train.request import TrainRequest

try:
    import accelerate  # type: ignore[import-untyped]
except ImportError as error:
    raise MissingExtraError("training needs accelerate", hint=INSTALL) from error

_Kind = accelerate.DistributedType
_KNOWN = (_Kind.NO, _Kind.MULTI_CPU, _Kind.MULTI_GPU, _Kind.FSDP)


def accelerator(request: TrainRequest) -> accelerate.Accelerator:
    """Set accelerate up for a training.

    Raises:
        NybbleError: no such device, or a way to distribute that checkpoints cannot follow.
    """
    gpu = torch.cuda.is_available()
    if request.device == "cuda" and not gpu:
        raise NybbleError(
            "torch sees no GPU", seen="--device cuda", allowed="auto, cpu", hint="nybble doctor"
        )
    cpu = request.device == "cpu" or not gpu
    bf16 = request.precision == "bf16" or (request.precision == "auto" and not cpu)
    # It keeps one state a process; an earlier run's device and precision must not decide these.
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    made = accelerate.Accelerator(
        cpu=cpu,
        mixed_precision="bf16" if bf16 else "no",
        # A plugin, since a plain number yields to the environment's.
        gradient_accumulation_plugin=accelerate.utils.GradientAccumulationPlugin(
            num_steps=request.accumulate, sync_with_dataloader=False
        ),
    )
    kind = made.distributed_type
    if kind not in _KNOWN or (kind == _Kind.FSDP and not made.is_fsdp2):
        raise NybbleError(
            "training cannot be distributed this way",
            seen="FSDP 1" if kind == _Kind.FSDP else kind.value,
            allowed="one process, several with whole copies, or FSDP 2",
            hint="accelerate launch --use_fsdp --fsdp_version 2 ...",
        )
    return made


def slow_bf16(made: accelerate.Accelerator) -> bool:
    """Whether bf16 was asked for on a CPU that has no instructions for it."""
    if made.device.type != "cpu" or made.mixed_precision != "bf16":
        return False
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def prepare(
    student: Student, optimizer: torch.optim.Optimizer, made: accelerate.Accelerator
) -> tuple[torch.nn.Module, Any]:
    """What accelerate makes of a student's module and of its optimizer.

    Raises:
        NybbleError: activation checkpointing is asked for.
    """
    if made.distributed_type == _Kind.FSDP:
        plugin = made.state.fsdp_plugin
        if plugin.activation_checkpointing:
            # The second forward pass runs inside backward, where no KV setting is in effect.
            raise NybbleError(
                "a quantized cache cannot be trained with activation checkpointing",
                seen="fsdp_activation_checkpointing: true", allowed="false",
                hint="accelerate config; a smaller --batch saves memory too",
            )  # fmt: skip
        # Gathered as bf16, which is accelerate's way, held-out passes would not see the weights;
        # autocast does as well, at the price of a bf16 copy of each from forward to backward.
        plugin.mixed_precision_policy = None
        if made.mixed_precision == "bf16":
            autocast = torch.autocast(made.device.type, torch.bfloat16)
            student.module.forward = autocast(student.module.forward)
        # Every process has loaded the weights itself.
        plugin.cpu_ram_efficient_loading = False
        student.before_sharding()
    module, prepared = made.prepare(student.module, optimizer)
    return module, prepared


def held_out(
    student: Student,
    chunks: npt.NDArray[np.int32],
    setting: str,
    batch: int,
    made: accelerate.Accelerator,
) -> npt.NDArray[np.float64]:
    """KLD of every scored token of the held-out chunks, [n, scored].

    Processes take turns and all get all. Chunks past the end are the first ones over again, and
    dropped: where weights are shards, every process must run in every turn.
    """
    size = min(batch, -(-len(chunks) // made.num_processes))
    parts = []
    for first in range(0, len(chunks), size * made.num_processes):
        mine = first + size * made.process_index + np.arange(size)
        part = student.held_out(as_ids(chunks[mine % len(chunks)], made), setting)
        parts.append(made.gather(part).double().cpu())
    for module in student.module.modules():
        if isinstance(module, FSDPModule):  # it keeps weights gathered until a backward pass
            module.reshard()
    found: npt.NDArray[np.float64] = torch.cat(parts)[: len(chunks)].numpy()
    return found


def as_ids(rows: npt.NDArray[np.int32], made: accelerate.Accelerator) -> Tensor:
    """Token ids as embeddings take them, int64 on the device."""
    return torch.from_numpy(rows.astype(np.int64)).to(made.device)


def main_says(flag: bool, made: accelerate.Accelerator) -> bool:
    """The main process's flag: what hangs on a clock must be decided by one."""
    return bool(accelerate.utils.broadcast(torch.tensor(int(flag), device=made.device)))


def is_main() -> bool:
    """Whether this process is the one that writes, once a training has begun."""
    return bool(accelerate.PartialState().is_main_process)
