"""Training: what a step is, what is kept, when it stops, what is told."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("accelerate")

import torch  # noqa: E402
from train_toys import (  # noqa: E402
    CONTEXT,
    Told,
    Toy,
    ToyStudent,
    launch,
    pool,
    request,
    run,
    table,
)

from nybble.errors import CacheNotReadError, MissingExtraError, NybbleError  # noqa: E402
from nybble.hardening.train.loop import train  # noqa: E402
from nybble.hardening.train.rates import share_of_peak  # noqa: E402

Q4, Q8 = "q4_0/q4_0", "q8_0/q8_0"


def held_out_kld(student: ToyStudent, setting: str = Q4) -> float:
    ids = torch.from_numpy(pool().held_out.astype(np.int64))
    return float(student.held_out(ids, setting).double().mean())


class TestTraining:
    def test_gets_better_and_keeps_the_best(self, tmp_path: Path) -> None:
        student, told = ToyStudent(), Told()
        before = held_out_kld(student)
        found = train(student, pool(), request(tmp_path, steps=80, eval_every=20), "m", told)
        assert found.improved and found.stopped == "steps" and found.steps == 80
        assert found.start[Q4] == pytest.approx(before, rel=1e-6) and found.start["f16"] == 0
        assert found.best[Q4] < 0.6 * before
        assert held_out_kld(student) == pytest.approx(found.best[Q4], rel=1e-6)
        assert found.tokens == 80 * 2 * CONTEXT
        assert told.done == told.total == 80
        assert any("held-out KLD" in n and "min left" in n for n in told.notes)

    def test_never_better_gives_the_start(self, tmp_path: Path) -> None:
        """Rates so large that every step does harm."""
        student = ToyStudent()
        start = {n: t.clone() for n, t in student.trained().items()}
        found = run(tmp_path, student, lr=(("scales", 1.0), ("kv", 1.0)), warmup=0.0)
        assert not found.improved and found.best_step == 0 and found.best == found.start
        assert all(torch.equal(t, start[n]) for n, t in student.trained().items())

    def test_best_is_not_the_last(self, tmp_path: Path) -> None:
        """Uphill from step 12 on, after what momentum is left."""

        class Late(ToyStudent):
            def loss(self, *args: Any) -> torch.Tensor:
                value = super().loss(*args)
                return value if self.calls <= 12 else -value

        student = Late()
        found = run(tmp_path, student, steps=30, eval_every=4, warmup=0.0)
        assert 12 <= found.best_step < 30 and found.steps == 30
        assert held_out_kld(student) == pytest.approx(found.best[Q4], rel=1e-6)
        looks = {r["step"]: float(r["kld"]) for r in table(tmp_path / "held_out.csv")
                 if r["setting"] == Q4}  # fmt: skip
        assert min(looks, key=looks.__getitem__) == str(found.best_step)
        assert looks["30"] > looks[str(found.best_step)]

    def test_plateau(self, tmp_path: Path) -> None:
        """Rates too small to gain 1 %: two looks after the start are enough."""
        found = run(tmp_path, lr=(("scales", 1e-9), ("kv", 1e-9)), steps=100, patience=2)
        assert (found.stopped, found.steps) == ("plateau", 6)

    def test_gains_of_less_than_one_percent_add_up(self, tmp_path: Path) -> None:
        """A slow fall is no plateau as long as patience looks together gain 1 %."""

        class Slow(ToyStudent):
            def held_out(self, ids: torch.Tensor, setting: str) -> torch.Tensor:
                return torch.full((len(ids), 4), 0.993**self.calls)

        found = run(tmp_path, Slow(), steps=12, eval_every=1, patience=3)
        assert (found.stopped, found.steps) == ("steps", 12)
        found = run(tmp_path / "less", Slow(), steps=12, eval_every=1, patience=1)
        assert (found.stopped, found.steps) == ("plateau", 1)

    def test_threads_are_put_back(self, tmp_path: Path) -> None:
        before = torch.get_num_threads()
        run(tmp_path, steps=1, threads=before + 1)
        assert torch.get_num_threads() == before


class TestStep:
    def test_accumulation_is_a_larger_batch(self, tmp_path: Path) -> None:
        found = []
        for batch, accumulate in ((8, 1), (2, 4), (1, 8)):
            student = ToyStudent(torch.float64)
            out = tmp_path / f"{batch}"
            run(out, student, batch=batch, accumulate=accumulate, steps=6)
            found.append(student.trained())
            losses = [float(r["loss"]) for r in table(out / "train.csv")]
            assert len(losses) == 6
        for other in found[1:]:
            for name, tensor in found[0].items():
                torch.testing.assert_close(other[name], tensor, rtol=1e-9, atol=1e-12)

    def test_accumulation_that_the_environment_contradicts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`accelerate launch` and old shells set it."""
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
        student = ToyStudent(torch.float64)
        run(tmp_path / "a", student, batch=2, accumulate=4, steps=3)
        other = ToyStudent(torch.float64)
        run(tmp_path / "b", other, batch=8, steps=3)
        for name, tensor in student.trained().items():
            torch.testing.assert_close(other.trained()[name], tensor, rtol=1e-9, atol=1e-12)

    def test_is_adamw_clipped(self, tmp_path: Path) -> None:
        """Two steps again, by torch's own AdamW and clip_grad_norm_."""
        student = ToyStudent(torch.float64)
        run(tmp_path, student, steps=2, eval_every=2)
        other = ToyStudent(torch.float64)
        optimizer = torch.optim.AdamW(other.groups, betas=(0.9, 0.98), weight_decay=0.0)
        for step, (ids, setting, positions) in enumerate(student.seen):
            loss = other.loss(ids, setting, positions)
            loss.backward()  # type: ignore[no-untyped-call]
            parameters = [p for g in other.groups for p in g["params"]]
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            assert norm > 1, "nothing was clipped"
            for group, peak in zip(optimizer.param_groups, (0.05, 1e-4), strict=True):
                group["lr"] = peak * share_of_peak(request(tmp_path, steps=2), step)
            optimizer.step()
            optimizer.zero_grad()
            row = table(tmp_path / "train.csv")[step]
            assert float(row["loss"]) == pytest.approx(loss.item(), rel=1e-9)
            assert float(row["grad_norm"]) == pytest.approx(float(norm), rel=1e-9)
        for name, tensor in other.trained().items():
            torch.testing.assert_close(student.trained()[name], tensor, rtol=1e-9, atol=1e-12)

    def test_positions_are_an_unbiased_subset(self, tmp_path: Path) -> None:
        student = ToyStudent()
        run(tmp_path, student, steps=300, positions=4, eval_every=300)
        drawn = torch.stack([positions for _, _, positions in student.seen])
        assert drawn.shape == (300, 4)
        assert all(len(set(row.tolist())) == 4 for row in drawn)
        counts = torch.bincount(drawn.flatten(), minlength=CONTEXT)
        # 300 draws of 4 out of 32: 37.5 each, standard deviation 5.7.
        assert (counts - 37.5).abs().max() < 27

    def test_one_draw_for_all_passes_of_a_step(self, tmp_path: Path) -> None:
        student = ToyStudent()
        run(tmp_path, student, steps=4, accumulate=3, settings=(Q4, Q8, "f16"))
        for step in range(4):
            passes = student.seen[3 * step : 3 * step + 3]
            assert len({setting for _, setting, _ in passes}) == 1
            assert all(torch.equal(passes[0][2], positions) for _, _, positions in passes)
        assert not all(torch.equal(student.seen[0][2], p) for _, _, p in student.seen)

    def test_settings_by_weight(self, tmp_path: Path) -> None:
        student = ToyStudent()
        run(tmp_path, student, steps=200, eval_every=200, settings=("f16", Q4, "q8_0"),
            weights=(1, 3, 1))  # fmt: skip
        names = [setting for _, setting, _ in student.seen]
        assert set(names) == {"f16", Q4, Q8}
        assert names.count(Q4) == pytest.approx(120, abs=28)  # 4 standard deviations
        rows = table(tmp_path / "train.csv")
        assert [r["setting"] for r in rows] == names

    def test_mixed_precision_where_the_module_is_called(self, tmp_path: Path) -> None:
        """And only there: the student's own float32 arithmetic stays float32."""
        inside, outside = [], []

        class WatchedToy(Toy):
            def forward(self, *args: Any) -> torch.Tensor:
                inside.append(torch.is_autocast_enabled("cpu"))
                return super().forward(*args)

        class Watched(ToyStudent):
            def loss(self, *args: Any) -> torch.Tensor:
                outside.append(torch.is_autocast_enabled("cpu"))
                return super().loss(*args)

        for precision in ("bf16", "f32", "bf16"):  # one process, one after the other
            student = Watched()
            student.module.__class__ = WatchedToy
            inside.clear()
            run(tmp_path / "run", student, steps=2, precision=precision, resume=False)
            assert set(inside) == {precision == "bf16"}
            student.module(torch.zeros(1, 2, dtype=torch.long), "f16")
            assert inside[-1] is False, "left wrapped"
        assert not any(outside)

    @pytest.mark.parametrize("supported", [True, False])
    def test_bf16_without_instructions_for_it_is_said(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, supported: bool
    ) -> None:
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
        for precision in ("bf16", "f32"):
            told = Told()
            asked = request(tmp_path / precision, steps=1, precision=precision)
            train(ToyStudent(), pool(), asked, "m", told)
            said = [n for n in told.notes if "no bf16 arithmetic" in n]
            assert len(said) == (precision == "bf16" and not supported)


class TestRates:
    def test_rise_and_fall(self, tmp_path: Path) -> None:
        asked = request(tmp_path, steps=100, warmup=0.1)
        shares = [share_of_peak(asked, step) for step in range(100)]
        assert shares[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
        assert shares[10] == 1 and shares[55] == pytest.approx(0.5)
        assert shares[10:] == sorted(shares[10:], reverse=True) and 0 < shares[-1] < 0.001

    @pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 1.0), (5, 1.0), (3, 0.05)])
    def test_short_ones(self, tmp_path: Path, steps: int, warmup: float) -> None:
        asked = request(tmp_path, steps=steps, warmup=warmup)
        assert all(0 < share_of_peak(asked, step) <= 1 for step in range(steps))

    def test_named_groups(self, tmp_path: Path) -> None:
        """A rate of its own for one group leaves the other's."""
        student = ToyStudent(torch.float64)
        run(tmp_path, student, steps=1, warmup=1.0, lr=(("kv", 1e-3),))
        # AdamW's first step is lr * sign(gradient) where the gradient is not tiny.
        moved = {n: (t - ToyStudent(torch.float64).trained()[n]).abs().max().item()
                 for n, t in student.trained().items()}  # fmt: skip
        rates = {"scale": 0.05, "first": 1e-3, "second": 1e-3}
        assert moved == pytest.approx(rates, rel=1e-3)

    def test_a_group_that_is_not_trained(self, tmp_path: Path) -> None:
        with pytest.raises(NybbleError) as caught:
            run(tmp_path, lr=(("lora", 1e-3),))
        assert (caught.value.seen, caught.value.allowed) == ("lora", "scales, kv")


class TestNotFinite:
    def test_two_are_skipped(self, tmp_path: Path) -> None:
        student = ToyStudent(bad=frozenset({2, 3}))
        told = Told()
        found = train(student, pool(), request(tmp_path), "m", told)
        assert found.skipped == 2 and found.steps == 10
        assert sum("skipped" in n for n in told.notes) == 2
        losses = [float(r["loss"]) for r in table(tmp_path / "train.csv")]
        assert [i for i, loss in enumerate(losses) if math.isnan(loss)] == [2, 3]
        assert all(t.isfinite().all() for t in student.trained().values())

    def test_a_skipped_step_changes_nothing(self, tmp_path: Path) -> None:
        """The third step's two passes, one of them NaN: neither weights nor moments move."""
        saved: list[dict[str, torch.Tensor]] = []

        class Watched(ToyStudent):
            def loss(self, *args: Any) -> torch.Tensor:
                saved.append({n: t.clone() for n, t in self.trained().items()})
                return super().loss(*args)

        student = Watched(bad=frozenset({5}))
        run(tmp_path, student, steps=4, accumulate=2)
        before, after = saved[4], saved[6]
        assert all(torch.equal(before[n], after[n]) for n in before)
        assert not all(torch.equal(saved[2][n], before[n]) for n in before)

    def test_three_in_a_row(self, tmp_path: Path) -> None:
        student = ToyStudent(bad=frozenset({1, 3, 4, 5}))
        with pytest.raises(NybbleError, match="diverged") as caught:
            run(tmp_path, student)
        assert caught.value.seen is not None and "step 6" in caught.value.seen
        assert student.calls == 6

    def test_gradient_of_infinity(self, tmp_path: Path) -> None:
        """A finite loss whose gradient is not: the square root of 0."""

        class Sharp(ToyStudent):
            def loss(self, *args: Any) -> torch.Tensor:
                value = super().loss(*args)
                zero = (self.module.scale * 0).sum()
                return value + torch.sqrt(zero) if self.calls == 2 else value

        student = Sharp()
        assert run(tmp_path, student).skipped == 1
        assert all(t.isfinite().all() for t in student.trained().values())

    def test_start(self, tmp_path: Path) -> None:
        student = ToyStudent()
        with torch.no_grad():
            student.module.first[0, 0] = float("nan")
        with pytest.raises(NybbleError, match="not finite before training"):
            run(tmp_path, student)

    def test_a_look_that_is_not_finite_is_no_gain(self, tmp_path: Path) -> None:
        class Blind(ToyStudent):
            def held_out(self, ids: torch.Tensor, setting: str) -> torch.Tensor:
                return super().held_out(ids, setting) * (float("nan") if self.calls else 1.0)

        found = run(tmp_path, Blind(), patience=2)
        assert not found.improved and found.stopped == "plateau"


class TestRefused:
    def test_cache_that_is_not_read(self, tmp_path: Path) -> None:
        """A setting that the student ignores has a KLD of exactly 0."""
        with pytest.raises(CacheNotReadError, match="q5_1/q5_1 does not change"):
            run(tmp_path, settings=(Q4, "q5_1"))

    def test_context(self, tmp_path: Path) -> None:
        with pytest.raises(NybbleError, match="another context"):
            run(tmp_path, context=64)

    def test_too_little_text_for_a_step(self, tmp_path: Path) -> None:
        with pytest.raises(NybbleError, match="read a chunk twice") as caught:
            run(tmp_path, batch=10, accumulate=4)
        assert caught.value.allowed == "40 or more"

    @pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
    def test_no_gpu(self, tmp_path: Path) -> None:
        with pytest.raises(NybbleError, match="no GPU"):
            run(tmp_path, device="cuda")

    def test_folder_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("")
        with pytest.raises(NybbleError, match="cannot write"):
            run(tmp_path / "out")

    def test_tensorboard_that_is_not_installed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        student = ToyStudent()
        with pytest.raises(MissingExtraError, match=r"\[train\]"):
            run(tmp_path, student, log="tensorboard")
        assert student.calls == 0 and not any(tmp_path.iterdir())


@pytest.mark.slow
class TestTwoProcesses:
    """Over gloo, on two CPU processes, with float64 weights."""

    @pytest.mark.parametrize("kind", ["ddp", "fsdp"])
    def test_as_one_process_with_twice_the_batch(self, tmp_path: Path, kind: str) -> None:
        alone = ToyStudent(torch.float64)
        run(tmp_path / "one", alone, batch=4, accumulate=2, steps=6, eval_every=2)
        two = tmp_path / "two"
        for tensors in launch(kind, two, 6, "toy"):
            for name, tensor in alone.trained().items():
                torch.testing.assert_close(tensors[name], tensor, rtol=1e-9, atol=1e-11)
        for name in ("train.csv", "held_out.csv"):
            for ours, theirs in zip(table(two / name), table(tmp_path / "one" / name), strict=True):
                for column, text in theirs.items():
                    same = text if column == "setting" else pytest.approx(float(text), rel=1e-9)
                    assert (ours[column] if column == "setting" else float(ours[column])) == same

    def test_shards_resume_to_the_bit(self, tmp_path: Path) -> None:
        """The newest checkpoint is taken away; the last step is done again from the one before."""
        before = launch("fsdp", tmp_path, 6, "toy")
        rows = table(tmp_path / "train.csv")
        (tmp_path / "checkpoints" / "step-0000000006.json").unlink()
        after = launch("fsdp", tmp_path, 6, "toy")
        for one, other in zip(before, after, strict=True):
            assert {n: t.numpy().tobytes() for n, t in one.items()} == {
                n: t.numpy().tobytes() for n, t in other.items()
            }
        assert table(tmp_path / "train.csv") == rows

    def test_another_number_of_processes(self, tmp_path: Path) -> None:
        launch("ddp", tmp_path, 1, "toy")
        with pytest.raises(NybbleError, match="another value of processes") as caught:
            run(tmp_path, ToyStudent(torch.float64), accumulate=2, eval_every=2)
        assert caught.value.seen == "asked: 1"


class TestLog:
    def test_rows(self, tmp_path: Path) -> None:
        run(tmp_path, steps=7, eval_every=3, settings=(Q4, Q8))
        rows = table(tmp_path / "train.csv")
        assert [r["step"] for r in rows] == [str(i) for i in range(1, 8)]
        assert [r["tokens"] for r in rows] == [str(64 * i) for i in range(1, 8)]
        assert float(rows[0]["lr"]) == pytest.approx(0.05)
        looks = table(tmp_path / "held_out.csv")
        assert [(r["step"], r["setting"]) for r in looks] == [
            (step, setting) for step in ("0", "3", "6", "7") for setting in (Q4, Q8, "f16")
        ]
        assert all(float(r["p99"]) >= float(r["kld"]) for r in looks)

    def test_tensorboard(self, tmp_path: Path) -> None:
        pytest.importorskip("torch.utils.tensorboard", exc_type=ImportError)
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        run(tmp_path, steps=4, log="tensorboard", checkpoint_every=0.0)
        run(tmp_path, steps=6, log="tensorboard")
        board = EventAccumulator(str(tmp_path / "tensorboard"))
        board.Reload()
        assert [e.step for e in board.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
        assert [e.step for e in board.Scalars(f"held_out_kld/{Q4}")] == [0, 3, 4, 6]
        values = [e.value for e in board.Scalars("train/loss")]
        assert values == pytest.approx([float(r["loss"]) for r in table(tmp_path / "train.csv")])
