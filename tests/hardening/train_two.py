"""One process of a distributed training, started by train_toys.launch.

Usage: train_two.py ddp|fsdp|layers OUT STEPS WHAT [LORA PRECISION]. With "fsdp" and "layers" (each
layer a unit of its own), accelerate is told that it may shard on CPUs, which `accelerate launch`
itself offers on GPUs only. WHAT is "toy" or the family of a tiny model.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import accelerate
import torch
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule
from train_toys import ToyStudent, pool, request

from nybble.hardening.train import loop, processes
from nybble.hardening.train.loop import train
from nybble.hardening.train.request import TrainRequest
from nybble.hardening.train.tensors import spread, whole


class ShardedStudent(ToyStudent):
    """Its `trained` and `load_trained` work on shards, of the module that accelerate made."""

    def _ours(self) -> dict[str, torch.nn.Parameter]:
        named = self.module.named_parameters()
        return {n.removeprefix("module."): p for n, p in named if p.requires_grad}

    def trained(self) -> Mapping[str, torch.Tensor]:
        return {name: whole(p.detach()) for name, p in self._ours().items()}

    @torch.no_grad()
    def load_trained(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self._ours().items():
            parameter.copy_(spread(tensors[name], parameter))


WRAP = {"fsdp": "no_wrap", "layers": "transformer_based_wrap"}


def sharding(asked: TrainRequest) -> accelerate.Accelerator:
    made = processes.accelerator(asked)
    kind = accelerate.DistributedType.FSDP
    plugin = accelerate.FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy=WRAP[sys.argv[1]], cpu_ram_efficient_loading=False
    )
    if asked.precision == "bf16":
        plugin.set_mixed_precision("bf16")
    made.state._shared_state.update(distributed_type=kind, fsdp_plugin=plugin)
    accelerate.PartialState._shared_state["distributed_type"] = kind
    assert made.is_fsdp2
    return made


def toy(out: Path, steps: int) -> tuple[Any, dict[str, torch.Tensor]]:
    student = ShardedStudent(torch.float64)
    asked = request(out, batch=2, accumulate=2, steps=steps, eval_every=2, checkpoint_every=0.0)
    train(student, pool(), asked, "model")
    return student, dict(student.trained())


def model(
    out: Path, steps: int, family: str, lora: str, precision: str
) -> tuple[Any, dict[str, torch.Tensor]]:
    import train_kv

    asked = train_kv.request(
        out, steps=steps, accumulate=2, lora=int(lora), precision=precision, checkpoint_every=0.0
    )
    student = train_kv.student(family, asked)
    train(student, train_kv.pool(), asked, "model")
    teacher = {type(p).__name__ for p in student._original.parameters()}
    assert teacher == {"Parameter" if sys.argv[1] == "ddp" else "DTensor"}, teacher
    units = sum(isinstance(m, FSDPModule) for m in student.module.modules())
    assert units == {"ddp": 0, "fsdp": 1, "layers": 5}[sys.argv[1]], units
    return student, {
        **student.trained(),
        **{f"changed.{n}": t for n, t in student.changed().items()},
    }


def main(kind: str, out: Path, steps: int, what: str, *rest: str) -> None:
    if kind != "ddp":
        loop.accelerator = sharding
    student, tensors = toy(out, steps) if what == "toy" else model(out, steps, what, *rest)
    shards = {type(p).__name__ for p in student.module.parameters() if p.requires_grad}
    assert shards == {"Parameter" if kind == "ddp" else "DTensor"}, shards
    save_file(tensors, out / f"rank{torch.distributed.get_rank()}.safetensors")
    torch.distributed.barrier()
    os._exit(0)  # torch at times aborts while it takes its threads down, long after the work


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
