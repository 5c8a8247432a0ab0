"""The training loop: KL to the frozen teacher, best held-out state kept, resumable to the bit.

Every draw (text, positions, KV setting) is a function of the seed and the step, so a run that was
killed goes on exactly as one that was not. One process, several, or FSDP 2 by `accelerate launch`:
a step reads `batch * accumulate` sequences in each process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch

from nybble.environment import keep_freed_memory
from nybble.errors import CacheNotReadError, NybbleError
from nybble.formats import parse
from nybble.hardening.train.checkpoints import Checkpoints, State
from nybble.hardening.train.data import TokenPool
from nybble.hardening.train.draws import Purpose, choice, permutation
from nybble.hardening.train.interface import TAX, Student, Tensor
from nybble.hardening.train.log import HeldOutRow, StepRow, TrainLog, summary_writer
from nybble.hardening.train.optimizer import MuonAndAdamW
from nybble.hardening.train.processes import (
    accelerator,
    as_ids,
    held_out,
    main_says,
    prepare,
    slow_bf16,
)
from nybble.hardening.train.rates import share_of_peak, with_peaks
from nybble.hardening.train.request import TrainRequest
from nybble.hardening.train.tensors import check_same, load_moments, moments
from nybble.results.hardened import Training
from nybble.scoring.request import Progress, Silent

CLIP = 1.0
MOST_BAD = 3  # steps in a row that are not finite
GAIN = 0.01  # what counts as getting better when waiting for a plateau
_F16 = str(parse(TAX))


def train(
    student: Student,
    pool: TokenPool,
    request: TrainRequest,
    model: str,
    progress: Progress | None = None,
) -> Training:
    """Train, and leave the best state in the student.

    Args:
        student: what is trained, at its start.
        pool: the text.
        request: how.
        model: fingerprint of the model's weights; a checkpoint of another is refused.
        progress: told of steps, losses and the time left.

    Raises:
        NybbleError: no such device, too little text, another run's checkpoint, a full disk, or a
            loss that is not finite several times in a row.
        CacheNotReadError: a quantized setting does not change the model.
        MissingExtraError: TensorBoard is asked for and not installed.
    """
    if request.log == "tensorboard":
        summary_writer()  # before anything is computed
    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(request.cpu_threads)
    try:
        return _Training(student, pool, request, model, progress or Silent()).run()
    finally:
        torch.set_num_threads(threads)


class _Training:
    def __init__(
        self, student: Student, pool: TokenPool, request: TrainRequest, model: str,
        progress: Progress,
    ) -> None:  # fmt: skip
        self.student, self.pool, self.request = student, pool, request
        self.accelerator = accelerator(request)
        self.world = self.accelerator.num_processes
        self.main = self.accelerator.is_main_process
        self.progress = progress if self.main else Silent()
        if slow_bf16(self.accelerator):
            self.progress.note("this CPU has no bf16 arithmetic: --precision bf16 is many times "
                               "slower here than f32")  # fmt: skip
        # One name for the unquantized cache, drawn or not.
        self.settings = [TAX if s == _F16 else s for s in request.settings]
        self.per_step = request.batch * request.accumulate * self.world
        self._check_text()
        groups = with_peaks(student.groups, request)
        self.peaks = [float(g["lr"]) for g in groups]
        optimizer = MuonAndAdamW(groups)
        student.module, self.optimizer = prepare(student, optimizer, self.accelerator)
        identity = {
            **request.defining(), "model": model, "text": pool.sha256, "processes": self.world,
            "precision": "bf16" if self.accelerator.mixed_precision == "bf16" else "f32",
        }  # fmt: skip
        self.checkpoints = Checkpoints(request.out / "checkpoints", identity, self.main)
        self.begun = time.monotonic()

    def _check_text(self) -> None:
        n, context = self.pool.train.shape
        if context != self.request.context:
            raise NybbleError(
                "the text is cut to another context", seen=f"{context:,} tokens",
                allowed=f"{self.request.context:,}",
            )  # fmt: skip
        if n < self.per_step:
            raise NybbleError(
                "too little text: one step would read a chunk twice", seen=f"{n:,} chunks",
                allowed=f"{self.per_step:,} or more",
                hint="more --text, or a smaller --batch or --accumulate",
            )  # fmt: skip

    def run(self) -> Training:
        """Start or resume, train, and put the best state back."""
        with self.checkpoints:
            self.accelerator.wait_for_everyone()
            state = self._resume()
            resumed = None if state is None else state.step
            with (
                TrainLog(self.request.out, self.request.log, resumed)
                if self.main
                else nullcontext()
            ) as log:
                if state is None:
                    state = self._start(log)
                state = self._steps(state, log)
            self.accelerator.wait_for_everyone()
            if not self.main:  # what the main process wrote last
                self.checkpoints.load(self.progress.note)
            self.student.load_trained(self.checkpoints.best())
            if self.world == 1:  # without accelerate's mixed precision, as it came
                self.student.module = self.accelerator.unwrap_model(
                    self.student.module, keep_fp32_wrapper=False
                )
        return Training(
            scope=self.request.scope, settings=self.request.settings,
            improved=state.best_step > 0, start=state.start, best=state.best,
            best_step=state.best_step, steps=state.step,
            stopped="plateau" if self._plateau(state) else "steps",
            skipped=state.skipped, tokens=state.tokens, seconds=state.seconds,
        )  # fmt: skip

    def _resume(self) -> State | None:
        if not self.request.resume:
            self.checkpoints.clear()
            self.accelerator.wait_for_everyone()
        loaded = self.checkpoints.load(self.progress.note)
        self.accelerator.wait_for_everyone()
        if loaded is None:
            return None
        check_same(self.student.trained(), loaded.trained)
        load_moments(self.optimizer, loaded.moments)
        self.student.load_trained(loaded.trained)
        self.begun -= loaded.state.seconds
        self.progress.note(f"going on from step {loaded.state.step}")
        return loaded.state

    def _start(self, log: TrainLog | None) -> State:
        """Look at the held-out text before the first step."""
        self.progress.stage("Held-out KLD before training")
        klds = self._evaluate(0, 0, log)
        for setting in self.settings:
            if not math.isfinite(klds[setting]):
                raise NybbleError(
                    "the held-out loss is not finite before training",
                    seen=f"{klds[setting]} with {setting}",
                    hint="check the weights; --precision f32 tells overflow from damage",
                )
            if parse(setting).quantized and klds[setting] == 0:
                raise CacheNotReadError(
                    f"{setting} does not change the model at all, so its cache is not read",
                    seen="held-out KLD exactly 0",
                )
        self.checkpoints.save_best(0, self.student.trained())
        return State(0, 0, self._seconds(), klds, klds, 0, self._objective(klds))

    def _steps(self, state: State, log: TrainLog | None) -> State:
        request, first = self.request, state.step
        self.progress.begin(f"Training on {', '.join(self.settings)}", request.steps - first)
        session = saved_at = time.monotonic()
        while state.step < request.steps and not self._plateau(state):
            state, row = self._step(state)
            if log is not None:
                log.step(row)
            self.progress.advance(1)
            if state.step % request.eval_every == 0 or state.step == request.steps:
                each = (time.monotonic() - session) / (state.step - first)
                state = self._look(state, row, (request.steps - state.step) * each, log)
            due = time.monotonic() - saved_at >= request.checkpoint_every
            last = state.step == request.steps or self._plateau(state)
            if main_says(due, self.accelerator) or last:
                self._save(state, log)
                saved_at = time.monotonic()
        return state

    def _step(self, state: State) -> tuple[State, StepRow]:
        """One optimizer step; skipped where loss or gradient is not finite."""
        request, step = self.request, state.step
        setting = self.settings[choice(request.seed, Purpose.SETTING, step, request.shares)]
        order = permutation(request.seed, Purpose.POSITIONS, step, request.context)
        picked = np.sort(order[: request.positions])
        positions = torch.from_numpy(picked).to(self.accelerator.device)
        rows = self.pool.rows(request.seed, step, self.per_step)
        # Shared by all processes and passes, so they are parts of one larger batch.
        parts = rows.reshape(request.accumulate, self.world, request.batch, request.context)
        total = torch.zeros((), device=self.accelerator.device, dtype=torch.float64)
        for part in parts[:, self.accelerator.process_index]:
            with self.accelerator.accumulate(self.student.module):
                loss = self.student.loss(as_ids(part, self.accelerator), setting, positions)
                self.accelerator.backward(loss)
                total += loss.detach().double() / request.accumulate
        loss_value = float(self.accelerator.reduce(total, "mean"))
        norm = self.accelerator.clip_grad_norm_(self._parameters(), CLIP)
        norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        share = share_of_peak(request, step)
        finite = math.isfinite(loss_value) and math.isfinite(norm)
        if finite:
            for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
                group["lr"] = peak * share
            self.optimizer.step()
        self.optimizer.zero_grad()
        state = replace(
            state, step=step + 1, tokens=state.tokens + rows.size, seconds=self._seconds(),
            skipped=state.skipped + (not finite), bad=0 if finite else state.bad + 1,
        )  # fmt: skip
        if not finite:
            self._complain(state, setting, loss_value, norm)
        row = StepRow(state.step, state.tokens, loss_value, self.peaks[0] * share, norm,
                      state.seconds, setting)  # fmt: skip
        return state, row

    def _complain(self, state: State, setting: str, loss: float, norm: float) -> None:
        seen = f"step {state.step} with {setting}: loss {loss:.4g}, gradient {norm:.4g}"
        if state.bad >= MOST_BAD:
            raise NybbleError(
                f"training diverged: {MOST_BAD} steps in a row are not finite", seen=seen,
                hint="--restart with a smaller --lr, or with --precision f32",
            )  # fmt: skip
        self.progress.note(f"skipped: {seen}")

    def _look(self, state: State, row: StepRow, left: float, log: TrainLog | None) -> State:
        """Look at the held-out text: keep the best, wait for a plateau."""
        klds = self._evaluate(state.step, state.tokens, log)
        value, best = self._objective(klds), self._objective(state.best)
        if value < best or not self.request.keep_best:
            self.checkpoints.save_best(state.step, self.student.trained())
            state = replace(state, best=klds, best_step=state.step)
        gained = value < (1 - GAIN) * state.mark
        self.progress.note(
            f"step {state.step} of {self.request.steps}: loss {row.loss:.4g} with {row.setting}, "
            f"held-out KLD {value:.4g} (start {self._objective(state.start):.4g}, "
            f"{TAX} {klds[TAX]:.2g}), about {left / 60:.1f} min left"
        )
        return replace(
            state, mark=value if gained else state.mark, waited=0 if gained else state.waited + 1,
            seconds=self._seconds(),
        )  # fmt: skip

    def _evaluate(self, step: int, tokens: int, log: TrainLog | None) -> dict[str, float]:
        """Mean held-out KLD of every setting and of the tax."""
        rows = []
        for setting in dict.fromkeys([*self.settings, TAX]):
            kld = held_out(self.student, self.pool.held_out, setting, self.request.batch,
                           self.accelerator)  # fmt: skip
            p99 = float(np.quantile(kld, 0.99))
            rows.append(HeldOutRow(step, tokens, setting, float(kld.mean()), p99))
        if log is not None:
            log.held_out(rows)
        return {row.setting: row.kld for row in rows}

    def _objective(self, klds: Mapping[str, float]) -> float:
        """The expected KLD under the settings as they are drawn."""
        return math.fsum(
            share * klds[s] for share, s in zip(self.request.shares, self.settings, strict=True)
        )

    def _plateau(self, state: State) -> bool:
        return self.request.patience is not None and state.waited >= self.request.patience

    def _save(self, state: State, log: TrainLog | None) -> None:
        kept = {}
        for name, tensor in moments(self.optimizer):
            if self.main:
                kept[name] = tensor.cpu()
        if log is not None:
            log.sync()
        self.checkpoints.save(state, self.student.trained(), kept)

    def _parameters(self) -> list[Tensor]:
        """Those in training, in the module's order: accelerate compares with that under FSDP."""
        ours = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        return [p for p in self.student.module.parameters() if id(p) in ours]

    def _seconds(self) -> float:
        return time.monotonic() - self.begun
