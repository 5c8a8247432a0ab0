"""Muon and AdamW as one optimizer: each takes its groups, and nothing else changes hands."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
accelerate = pytest.importorskip("accelerate")

import train_kv  # noqa: E402
from train_toys import table  # noqa: E402

from nybble.hardening.train import optimizer  # noqa: E402
from nybble.hardening.train.loop import train  # noqa: E402
from nybble.hardening.train.optimizer import BETAS, MuonAndAdamW  # noqa: E402
from nybble.hardening.train.tensors import load_moments, moments  # noqa: E402


def parameters(seed: int = 0) -> dict[str, Any]:
    made = torch.Generator().manual_seed(seed)
    shapes = {"matrices": [(6, 4), (4, 8)], "norms": [(5,)], "scales": [(2, 3)]}
    return {name: [torch.nn.Parameter(torch.randn(s, generator=made)) for s in found]
            for name, found in shapes.items()}  # fmt: skip


def groups(found: dict[str, Any]) -> list[dict[str, Any]]:
    rates = {"matrices": 0.01, "norms": 0.02, "scales": 0.03}
    return [{"name": n, "params": p, "lr": rates[n]} for n, p in found.items()]


def go(optimizer: Any, found: dict[str, Any], steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        made = torch.Generator().manual_seed(100 + step)
        for ours in found.values():
            for p in ours:
                p.grad = torch.randn(p.shape, generator=made)
        optimizer.step()
        optimizer.zero_grad()


def check_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    for name in a:
        for x, y in zip(a[name], b[name], strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=0)


def zero_power(update: Any) -> Any:
    """torch's Newton-Schulz iteration (torch/optim/_muon.py), in float32 instead of bfloat16."""
    a, b, c = 3.4445, -4.775, 2.0315
    x = update.T if update.shape[0] > update.shape[1] else update
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if update.shape[0] > update.shape[1] else x


def test_a_cpu_orthogonalises_in_float32() -> None:
    found = parameters()
    start = [p.detach().clone() for p in found["matrices"]]
    go(MuonAndAdamW(groups(found)), found, 1)
    made = torch.Generator().manual_seed(100)
    for p, before in zip(found["matrices"], start, strict=True):
        gradient = torch.randn(p.shape, generator=made)
        # One step of momentum 0.95 from nothing, looked ahead: a factor, which has no effect.
        want = before - 0.01 * 0.2 * max(p.shape) ** 0.5 * zero_power(gradient)
        torch.testing.assert_close(p.detach(), want, rtol=1e-5, atol=1e-6)
        low = before - 0.01 * 0.2 * max(p.shape) ** 0.5 * zero_power(gradient.bfloat16().float())
        assert not torch.equal(p.detach(), low)


def test_each_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer, "_Float32", nullcontext)
    ours, theirs = parameters(), parameters()
    go(MuonAndAdamW(groups(ours)), ours, 5)
    given = groups(theirs)
    muon = torch.optim.Muon(given[:1], weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(given[1:], betas=BETAS, weight_decay=0.0)
    go(muon, {"matrices": theirs["matrices"]}, 5)
    for step in range(5):  # the same draws: matrices come first
        made = torch.Generator().manual_seed(100 + step)
        for p in theirs["matrices"]:
            torch.randn(p.shape, generator=made)
        for name in ("norms", "scales"):
            for p in theirs[name]:
                p.grad = torch.randn(p.shape, generator=made)
        adamw.step()
    check_same(ours, theirs)


@pytest.mark.parametrize("left_out", ["matrices", "norms", "scales"])
def test_any_group_may_be_missing(left_out: str) -> None:
    found = {n: p for n, p in parameters().items() if n != left_out}
    before = copy.deepcopy(found)
    go(MuonAndAdamW(groups(found)), found, 1)
    for name in found:
        for x, y in zip(found[name], before[name], strict=True):
            assert not torch.equal(x, y)


def test_a_rate_set_on_a_group_counts() -> None:
    found = parameters()
    before = copy.deepcopy(found)
    optimizer = MuonAndAdamW(groups(found))
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    go(optimizer, found, 2)
    check_same(found, before)


def test_goes_on_from_saved_moments() -> None:
    whole, halves = parameters(), parameters()
    go(MuonAndAdamW(groups(whole)), whole, 6)
    first = MuonAndAdamW(groups(halves))
    go(first, halves, 3)
    saved = {name: t.clone() for name, t in moments(first)}
    assert {n.rpartition("/")[2] for n in saved if n.startswith("matrices/")} == {"momentum_buffer"}
    second = MuonAndAdamW(groups(halves))
    load_moments(second, saved)
    go(second, halves, 3, first=3)
    check_same(whole, halves)


def test_as_accelerate_wraps_it() -> None:
    """It replaces groups and state by copies."""
    plain, wrapped = parameters(), parameters()
    go(MuonAndAdamW(groups(plain)), plain, 4)
    optimizer = accelerate.Accelerator(cpu=True).prepare(MuonAndAdamW(groups(wrapped)))
    go(optimizer, wrapped, 4)
    check_same(plain, wrapped)
    assert len(optimizer.state) == 4


def test_in_a_training(tmp_path: Path) -> None:
    """A killed training of a real architecture goes on to the bit."""
    whole = train_kv.student("llama", train_kv.request(tmp_path / "a", steps=4))
    train(whole, train_kv.pool(), train_kv.request(tmp_path / "a", steps=4), "m")

    class Killed(Exception):
        pass

    part = train_kv.student("llama", train_kv.request(tmp_path / "b", steps=4))
    loss, calls = part.loss, []

    def dies(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise Killed
        return loss(*args)

    asked = train_kv.request(tmp_path / "b", steps=4, checkpoint_every=0.0)
    part.loss = dies  # type: ignore[method-assign]
    with pytest.raises(Killed):
        train(part, train_kv.pool(), asked, "m")
    again = train_kv.student("llama", asked)
    train(again, train_kv.pool(), asked, "m")
    theirs = again.trained()
    assert all(torch.equal(t, theirs[n]) for n, t in whole.trained().items())
    assert table(tmp_path / "a" / "train.csv") == table(tmp_path / "b" / "train.csv")
