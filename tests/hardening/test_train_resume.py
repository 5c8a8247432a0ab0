"""A killed training goes on as if nothing had happened, to the bit."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("accelerate")

import torch  # noqa: E402
from train_toys import Told, ToyStudent, pool, request, run, table  # noqa: E402

from nybble.errors import NybbleError  # noqa: E402
from nybble.hardening.train import checkpoints as module  # noqa: E402
from nybble.hardening.train.checkpoints import Checkpoints, State  # noqa: E402
from nybble.hardening.train.loop import train  # noqa: E402
from nybble.hardening.train.tensors import load_moments, moments  # noqa: E402
from nybble.results.hardened import Training  # noqa: E402

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork") or sys.platform == "darwin", reason="kills forked children"
)

# Two settings, and the best state in the middle: all that a checkpoint must carry is in play.
MIX: dict[str, Any] = {
    "settings": ("q4_0", "q8_0", "f16"), "weights": (3, 1, 1), "accumulate": 2, "eval_every": 2,
    "checkpoint_every": 0.0, "lr": (("scales", 0.3),),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill loses nothing that was written; what fsync guards against, no test can do."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class Killing(Told):
    """Progress that kills its process when a step is done and logged."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def advance(self, done: float) -> None:
        super().advance(done)
        if self.done == self.after:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(work: Callable[[], object]) -> None:
    """Run in a forked child, which must die of kill -9."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL


def outcome(out: Path, student: ToyStudent, found: Training) -> dict[str, Any]:
    """All that must be the same, tensors as bytes."""
    return {
        "tensors": {n: t.numpy().tobytes() for n, t in student.trained().items()},
        "result": dataclasses.replace(found, seconds=0.0),
        "steps": table(out / "train.csv"),
        "held_out": table(out / "held_out.csv"),
    }


def finish(out: Path, told: Told | None = None, **changes: Any) -> dict[str, Any]:
    student = ToyStudent()
    asked = request(out, **{**MIX, **changes})
    return outcome(out, student, train(student, pool(), asked, "model", told))


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = finish(tmp_path_factory.mktemp("straight"))
    best = found["result"].best_step
    assert 0 < best, "the best state must not be the start"
    return found


class TestKill:
    @pytest.mark.parametrize("after", [1, 2, 5, 6, 10])
    def test_after_a_step(self, tmp_path: Path, straight: dict[str, Any], after: int) -> None:
        killed(lambda: train(ToyStudent(), pool(), request(tmp_path, **MIX), "model",
                             Killing(after)))  # fmt: skip
        logged = [int(r["step"]) for r in table(tmp_path / "train.csv")]
        assert logged == list(range(1, after + 1))
        told = Told()
        assert finish(tmp_path, told) == straight
        assert (f"going on from step {after - 1}" in told.notes) == (after > 1)
        assert told.done == told.total == 10 - (after - 1)

    def test_three_times(self, tmp_path: Path, straight: dict[str, Any]) -> None:
        for after in (4, 3, 2):
            killed(lambda n=after: train(ToyStudent(), pool(), request(tmp_path, **MIX), "model",
                                         Killing(n)))  # type: ignore[misc]  # fmt: skip
        assert finish(tmp_path) == straight

    @pytest.mark.parametrize("call", ["replace", "fsync"])
    def test_at_every_write(self, tmp_path: Path, straight: dict[str, Any], call: str) -> None:
        """Before each rename and each sync of the first steps, one kill for each."""

        def dies(out: Path, n: int) -> None:
            real, left = getattr(os, call), [n]

            def counted(*args: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args)

            setattr(os, call, counted)
            train(ToyStudent(), pool(), request(out, **MIX), "model")

        for n in range(11):
            out = tmp_path / str(n)
            killed(lambda o=out, k=n: dies(o, k))  # type: ignore[misc]
            assert finish(out) == straight, f"killed at {call} {n}"
            assert not list(out.rglob("*.part"))

    def test_without_checkpoints_in_between(self, tmp_path: Path, straight: dict[str, Any]) -> None:
        """How often it is saved does not matter; killed before the first save, it starts anew."""
        rare = {**MIX, "checkpoint_every": 1e6}
        killed(lambda: train(ToyStudent(), pool(), request(tmp_path, **rare), "model", Killing(7)))
        assert not list(tmp_path.rglob("step-*"))
        assert finish(tmp_path, checkpoint_every=1e6) == straight

    def test_skipped_steps_are_remembered(self, tmp_path: Path) -> None:
        """Two of three bad steps before the kill: the next one ends it."""
        bad = frozenset({0, 1})
        killed(lambda: train(ToyStudent(bad=bad), pool(), request(tmp_path, checkpoint_every=0.0),
                             "model", Killing(3)))  # fmt: skip
        with pytest.raises(NybbleError, match="diverged"):
            run(tmp_path, ToyStudent(bad=bad))  # whose first call is the third step's

    def test_plateau_is_remembered(self, tmp_path: Path) -> None:
        still = {"lr": (("scales", 1e-9), ("kv", 1e-9)), "steps": 40, "patience": 3,
                 "checkpoint_every": 0.0}  # fmt: skip
        killed(lambda: train(ToyStudent(), pool(), request(tmp_path, **still), "model",
                             Killing(8)))  # fmt: skip
        found = run(tmp_path, **still)
        assert (found.stopped, found.steps) == ("plateau", 9)


class TestAgain:
    def test_finished(self, tmp_path: Path, straight: dict[str, Any]) -> None:
        finish(tmp_path)
        student, told = ToyStudent(), Told()
        found = train(student, pool(), request(tmp_path, **MIX), "model", told)
        assert student.calls == 0
        assert outcome(tmp_path, student, found) == straight

    def test_more_steps(self, tmp_path: Path) -> None:
        run(tmp_path)
        student = ToyStudent()
        assert run(tmp_path, student, steps=14).steps == 14
        assert student.calls == 4
        assert [r["step"] for r in table(tmp_path / "train.csv")] == [str(i) for i in range(1, 15)]

    def test_more_patience(self, tmp_path: Path) -> None:
        still = {"lr": (("scales", 1e-9), ("kv", 1e-9)), "steps": 40}
        assert run(tmp_path, patience=2, **still).steps == 6
        assert run(tmp_path, patience=2, **still).steps == 6
        assert run(tmp_path, patience=4, **still).steps == 12

    def test_fresh(self, tmp_path: Path) -> None:
        run(tmp_path, seed=1, steps=12)
        found = run(tmp_path, resume=False)
        assert found.steps == 10 and len(table(tmp_path / "train.csv")) == 10
        names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
        assert names == [".lock", f"best-{found.best_step:010d}.safetensors",
                         "step-0000000010.json", "step-0000000010.safetensors"]  # fmt: skip

    def test_two_checkpoints_are_kept(self, tmp_path: Path) -> None:
        finish(tmp_path)
        folder = tmp_path / "checkpoints"
        assert sorted(p.stem for p in folder.glob("*.json")) == [
            "step-0000000009", "step-0000000010",
        ]  # fmt: skip
        assert len(list(folder.glob("step-*.safetensors"))) == 2
        assert 1 <= len(list(folder.glob("best-*"))) <= 2

    def test_logs_that_are_gone_or_torn(self, tmp_path: Path) -> None:
        run(tmp_path)
        (tmp_path / "held_out.csv").unlink()
        with (tmp_path / "train.csv").open("ab") as file:
            file.write(b"11,704,0.3\xff\nnonsense\n9")
        run(tmp_path, steps=11)
        assert [r["step"] for r in table(tmp_path / "train.csv")] == [str(i) for i in range(1, 12)]
        assert {r["step"] for r in table(tmp_path / "held_out.csv")} == {"11"}


class TestAnother:
    @pytest.mark.parametrize(
        ("changes", "named", "before", "asked"),
        [
            ({"seed": 7}, "seed", "0,", "7"),
            ({"batch": 3}, "batch", "2,", "3"),
            ({"accumulate": 2}, "accumulate", "1,", "2"),
            ({"settings": ("q4_0", "q8_0")}, "settings", "['q4_0/q4_0'],", "q8_0/q8_0"),
            ({"lr": (("kv", 1e-5),)}, "lr", "[],", "[['kv', 1e-05]]"),
            ({"positions": 9}, "positions", "8,", "9"),
            ({"scope": "all"}, "scope", "kv,", "all"),
            ({"warmup": 0.5}, "warmup", "0.05,", "0.5"),
            ({"eval_every": 4}, "eval_every", "3,", "4"),
            ({"precision": "bf16"}, "precision", "f32,", "bf16"),
        ],
    )
    def test_request(
        self, tmp_path: Path, changes: dict[str, Any], named: str, before: str, asked: str
    ) -> None:
        run(tmp_path, steps=2)
        student = ToyStudent()
        with pytest.raises(
            NybbleError, match=f"cannot resume with another value of {named}\n"
        ) as caught:
            run(tmp_path, student, **changes)
        error = caught.value
        assert error.allowed is not None and str(error.allowed).startswith(before)
        assert error.seen is not None and asked in error.seen
        assert error.hint is not None and "--restart" in error.hint
        assert student.calls == 0
        assert len(table(tmp_path / "train.csv")) == 2, "the log must not be touched"

    def test_model(self, tmp_path: Path) -> None:
        run(tmp_path, steps=2)
        with pytest.raises(NybbleError, match="another value of model") as caught:
            train(ToyStudent(), pool(), request(tmp_path), "other")
        assert caught.value.seen == "asked: other"

    def test_text(self, tmp_path: Path) -> None:
        run(tmp_path, steps=2)
        with pytest.raises(NybbleError, match="another value of text"):
            train(ToyStudent(), pool(seed=1), request(tmp_path), "model")

    def test_auto_and_what_it_means_are_the_same(self, tmp_path: Path) -> None:
        run(tmp_path, steps=2)
        assert run(tmp_path, steps=3, precision="f32").steps == 3

    def test_where_and_how_it_is_told(self, tmp_path: Path) -> None:
        run(tmp_path / "a", steps=2)
        (tmp_path / "a").rename(tmp_path / "b")
        found = run(tmp_path / "b", steps=3, patience=9, checkpoint_every=3.0, threads=2)
        assert found.steps == 3

    def test_shape(self, tmp_path: Path) -> None:
        """The same request over a student that trains something else."""
        run(tmp_path, steps=2)
        student = ToyStudent()
        student.module.second.requires_grad_(False)
        student.groups[1]["params"] = [student.module.first]
        with pytest.raises(NybbleError, match="does not fit") as caught:
            run(tmp_path, student)
        assert caught.value.seen is not None and caught.value.seen.startswith("second: ")


def newest(folder: Path, suffix: str) -> Path:
    return max((folder / "checkpoints").glob(f"step-*.{suffix}"))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty tensors": lambda f: newest(f, "safetensors").write_bytes(b""),
    "cut tensors": lambda f: os.truncate(newest(f, "safetensors"), 500),
    "one bit": lambda f: _flip(newest(f, "safetensors")),
    "no tensors": lambda f: newest(f, "safetensors").unlink(),
    "empty json": lambda f: newest(f, "json").write_bytes(b""),
    "cut json": lambda f: os.truncate(newest(f, "json"), 300),
    "binary json": lambda f: newest(f, "json").write_bytes(b"\xff\x00" * 40),
    "other json": lambda f: newest(f, "json").write_text("[1, 2]"),
    "null identity": lambda f: _change(newest(f, "json"), identity=None),
    "no state": lambda f: _change(newest(f, "json"), state={}),
    "path as step": lambda f: _change(newest(f, "json"), state={"step": "../../x"}),
    "wrong step": lambda f: _change(newest(f, "json"), state=_state(f) | {"step": 3}),
    "path as best": lambda f: _change(newest(f, "json"), state=_state(f) | {"best_step": "/x"}),
    "no such best": lambda f: _change(newest(f, "json"), state=_state(f) | {"best_step": 3}),
}


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def _state(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(newest(folder, "json").read_text())["state"]
    return found


def _change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class TestDamage:
    @pytest.mark.parametrize("how", DAMAGE)
    def test_newest(self, tmp_path: Path, straight: dict[str, Any], how: str) -> None:
        finish(tmp_path)
        DAMAGE[how](tmp_path)
        told = Told()
        assert finish(tmp_path, told) == straight
        assert "going on from step 9" in told.notes
        assert any("step-0000000010.json is damaged" in note for note in told.notes)

    def test_newest_is_not_taken_again(self, tmp_path: Path) -> None:
        """Killed right after falling back: the damaged one must not count as the newest."""
        finish(tmp_path)
        DAMAGE["one bit"](tmp_path)
        killed(lambda: train(ToyStudent(), pool(), request(tmp_path, **MIX), "model", Killing(1)))
        assert newest(tmp_path, "json").stem == "step-0000000009"

    def test_both(self, tmp_path: Path) -> None:
        finish(tmp_path)
        for path in (tmp_path / "checkpoints").glob("step-*.safetensors"):
            _flip(path)
        with pytest.raises(NybbleError, match="no checkpoint can be read") as caught:
            finish(tmp_path)
        assert caught.value.hint is not None and "--restart" in caught.value.hint
        assert finish(tmp_path, resume=False)["result"].steps == 10

    def test_other_version(self, tmp_path: Path) -> None:
        finish(tmp_path)
        _change(newest(tmp_path, "json"), version=99)
        with pytest.raises(NybbleError, match="another version"):
            finish(tmp_path)

    def test_nothing_is_unpickled(self, tmp_path: Path) -> None:
        import pickle

        finish(tmp_path)
        newest(tmp_path, "safetensors").write_bytes(pickle.dumps({"trained": print}))
        told = Told()
        finish(tmp_path, told)
        assert any("damaged" in note for note in told.notes)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Checkpoints]:
    with Checkpoints(tmp_path / "checkpoints", {"model": "m"}) as found:
        yield found


STATE = State(3, 9, 1.0, {"f16": 0.0}, {"f16": 0.0}, 0, 0.5)


class TestFolder:
    def test_tensors_as_they_are(self, folder: Checkpoints) -> None:
        """Views, transposes, numbers, empty ones, every type that is trained in."""
        base = torch.arange(12.0).reshape(3, 4)
        given = {
            "view": base[1:, :2], "turned": base.T, "number": torch.tensor(3.0),
            "empty": torch.zeros(0, 4), "bf16": base.bfloat16(), "f64": base.double(),
            "a/b.c": base, "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
        }  # fmt: skip
        folder.save_best(0, given)
        folder.save(STATE, given, {"g/0/exp_avg": base.clone()})
        found = folder.load(pytest.fail)
        assert found is not None and found.state == STATE
        assert set(found.moments) == {"g/0/exp_avg"}
        for tensors in (found.trained, folder.best()):
            assert set(tensors) == set(given)
            for name, tensor in given.items():
                assert tensors[name].dtype == tensor.dtype
                assert torch.equal(tensors[name].nan_to_num(7), tensor.nan_to_num(7))

    def test_two_at_once(self, folder: Checkpoints) -> None:
        with pytest.raises(NybbleError, match="another training"):
            Checkpoints(folder.folder, {"model": "m"}).__enter__()

    def test_full_disk(self, folder: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
        """The checkpoint before is still good."""
        one = {"x": torch.ones(4)}
        folder.save_best(0, one)
        folder.save(STATE, one, {})

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(module.os, "fsync", full)
        with pytest.raises(NybbleError, match="cannot write a checkpoint") as caught:
            folder.save(dataclasses.replace(STATE, step=4), one, {})
        assert "No space left" in str(caught.value)
        monkeypatch.undo()
        assert not list(folder.folder.glob("*.part"))
        found = folder.load(pytest.fail)
        assert found is not None and found.state.step == 3

    def test_best_that_is_gone(self, folder: Checkpoints) -> None:
        folder.save_best(0, {"x": torch.ones(4)})
        for path in folder.folder.glob("best-*"):
            path.unlink()
        with pytest.raises(NybbleError, match="best tensors cannot be read"):
            folder.best()

    def test_readers_write_nothing(self, tmp_path: Path) -> None:
        one = {"x": torch.ones(4)}
        with Checkpoints(tmp_path / "c", {"model": "m"}, writer=False) as reader:
            reader.clear()
            reader.save_best(0, one)
            reader.save(STATE, one, {})
        assert not (tmp_path / "c").exists()
        with Checkpoints(tmp_path / "c", {"model": "m"}) as writer:
            writer.save_best(0, one)
            writer.save(STATE, one, {})
            assert reader.load(pytest.fail) is not None
            assert torch.equal(reader.best()["x"], one["x"])


class TestMoments:
    def optimizer(self, *shapes: tuple[int, ...]) -> torch.optim.Optimizer:
        made = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
        groups = [{"params": made[:1], "name": "a"}, {"params": made[1:], "name": "b"}]
        return torch.optim.AdamW(groups)

    def test_parameters_without_gradients_have_none(self) -> None:
        before, after = (self.optimizer((2, 3), (4,), ()) for _ in range(2))
        first, second, _ = (p for g in before.param_groups for p in g["params"])
        for _ in range(3):
            first.grad = torch.full_like(first, 2.0)
            before.step()
        second.grad = torch.ones_like(second)
        before.step()
        saved = dict(moments(before))
        assert {key.rpartition("/")[0] for key in saved} == {"a/0", "b/0"}
        assert float(saved["a/0/step"]) == 4 and float(saved["b/0/step"]) == 1
        load_moments(after, saved)
        assert all(torch.equal(t, dict(moments(after))[key]) for key, t in saved.items())
        assert saved["a/0/exp_avg"] is not dict(moments(after))["a/0/exp_avg"]

    @pytest.mark.parametrize(
        "tensors",
        [{"c/0/exp_avg": torch.ones(2, 3)}, {"a/0/exp_avg": torch.ones(3, 2)},
         {"b/7/exp_avg": torch.ones(4)}, {"exp_avg": torch.ones(2, 3)}],
    )  # fmt: skip
    def test_of_others(self, tensors: dict[str, torch.Tensor]) -> None:
        with pytest.raises(NybbleError, match="does not fit"):
            load_moments(self.optimizer((2, 3), (4,), ()), tensors)
