"""A toy student whose rounding hurts and can be trained away, and short runs on it."""

from __future__ import annotations

import copy
import csv
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from nybble.hardening.train.data import TokenPool
from nybble.hardening.train.loop import train
from nybble.hardening.train.request import TrainRequest
from nybble.results.hardened import Training

VOCAB, DIM, CONTEXT = 48, 16, 32
LEVELS = {"q4_0/q4_0": 7, "q8_0/q8_0": 127}


class Toy(torch.nn.Module):
    """Two layers; what is between them is rounded, token by token, after a learned scale.

    Channel 0 is large where it enters, so at the start it costs all others their precision.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        made = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=made, dtype=dtype)

        self.embed = torch.nn.Parameter(draw(VOCAB, DIM), requires_grad=False)
        self.first = torch.nn.Parameter(draw(DIM, DIM) / 4)
        self.second = torch.nn.Parameter(draw(DIM, VOCAB) / 2)
        self.scale = torch.nn.Parameter(torch.zeros(DIM, dtype=dtype))
        with torch.no_grad():
            self.first[:, 0] *= 30
            self.second[0] /= 30

    def forward(self, ids: torch.Tensor, setting: str) -> torch.Tensor:
        hidden = self.embed[ids] @ self.first * torch.exp(self.scale)
        if setting in LEVELS:
            step = hidden.detach().abs().amax(-1, keepdim=True) / LEVELS[setting]
            hidden = hidden + (torch.round(hidden.detach() / step) * step - hidden.detach())
        return (hidden * torch.exp(-self.scale)) @ self.second


class ToyStudent:
    """The loop's Student.

    Args:
        dtype: of all weights.
        bad: calls of `loss`, from 0, that give NaN.
    """

    def __init__(self, dtype: torch.dtype = torch.float32, bad: frozenset[int] = frozenset()):
        self.module: Any = Toy(dtype)
        self.teacher = copy.deepcopy(self.module).requires_grad_(False)
        self.groups = [
            {"params": [self.module.scale], "lr": 0.05, "name": "scales"},
            {"params": [self.module.first, self.module.second], "lr": 1e-4, "name": "kv"},
        ]
        self.bad, self.calls = bad, 0
        self.seen: list[tuple[torch.Tensor, str, torch.Tensor]] = []
        self._inner = self.module

    def _kl(self, ids: torch.Tensor, setting: str) -> torch.Tensor:
        """[batch, context]."""
        theirs = self.teacher(ids, "f16").log_softmax(-1)
        ours = self.module(ids, setting).log_softmax(-1)
        return F.kl_div(ours, theirs, log_target=True, reduction="none").sum(-1)

    def loss(self, ids: torch.Tensor, setting: str, positions: torch.Tensor) -> torch.Tensor:
        self.seen.append((ids, setting, positions))
        self.calls += 1
        factor = float("nan") if self.calls - 1 in self.bad else 1.0
        return self._kl(ids, setting)[:, positions].mean() * factor

    @torch.no_grad()
    def held_out(self, ids: torch.Tensor, setting: str) -> torch.Tensor:
        return self._kl(ids, setting)[:, CONTEXT // 2 :]

    def before_sharding(self) -> None:
        """The teacher shares nothing with it, and is no part of it."""

    def trained(self) -> Mapping[str, torch.Tensor]:
        return {n: p.detach() for n, p in self._inner.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def load_trained(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self._inner.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(tensors[name])


def pool(chunks: int = 40, held_out: int = 4, seed: int = 0) -> TokenPool:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, VOCAB, (chunks, CONTEXT), dtype=np.int32)
    return TokenPool.split(ids, [f"d{i // 2}" for i in range(chunks)], held_out, seed)


def request(out: Path, **changes: Any) -> TrainRequest:
    base: dict[str, Any] = {
        "out": out, "scope": "kv", "context": CONTEXT, "steps": 10, "batch": 2, "positions": 8,
        "eval_every": 3, "patience": None, "threads": 1, "device": "cpu",
    }  # fmt: skip
    return TrainRequest(**{**base, **changes})


def run(out: Path, student: ToyStudent | None = None, **changes: Any) -> Training:
    return train(student or ToyStudent(), pool(), request(out, **changes), "model")


def table(path: Path) -> list[dict[str, str]]:
    """Rows of a log, without the column that a clock fills."""
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def launch(kind: str, out: Path, steps: int, *what: str) -> list[dict[str, torch.Tensor]]:
    """Train in two CPU processes over gloo (see train_two.py); the tensors that each ends with."""
    out.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = Path(__file__).parent
    children = []
    for rank in range(2):
        env = os.environ | {
            "RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}",
            "PYTHONPATH": os.pathsep.join([str(here), *sys.path]), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = [sys.executable, str(here / "train_two.py"), kind, str(out), str(steps), *what]
        children.append(
            subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )
    told = [child.communicate(timeout=120)[0].decode() for child in children]
    assert [child.returncode for child in children] == [0, 0], "\n".join(told)
    return [load_file(out / f"rank{rank}.safetensors") for rank in range(2)]


class Told:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.stages: list[str] = []
        self.total = self.done = 0.0

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def begin(self, text: str, total: float) -> None:
        self.stages.append(text)
        self.total, self.done = total, 0.0

    def advance(self, done: float) -> None:
        self.done += done

    def note(self, text: str) -> None:
        self.notes.append(text)
