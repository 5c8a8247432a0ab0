"""The student over tiny models: precision, what it hands over, and two processes with shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch  # noqa: E402
import train_kv  # noqa: E402
from train_toys import launch, table  # noqa: E402
from trained_models import DIM, EXPERTS, HEADS, KV_HEADS, LAYERS  # noqa: E402
from transformers import AutoModelForCausalLM, Gemma3Config  # noqa: E402

from nybble.engines.transformers.attention import Lanes  # noqa: E402
from nybble.engines.transformers.model import TorchModel  # noqa: E402
from nybble.errors import NybbleError  # noqa: E402
from nybble.formats import parse  # noqa: E402
from nybble.formats.codec import layer_stores  # noqa: E402
from nybble.hardening.train import parameters, processes  # noqa: E402
from nybble.hardening.train.loop import train  # noqa: E402
from nybble.hardening.train.student import KVStudent  # noqa: E402

Q4 = "q4_0/q4_0"


def wrapped(family: str, tmp_path: Path, **changes: Any) -> KVStudent:
    """As the loop wraps it."""
    asked = train_kv.request(tmp_path, **changes)
    student = train_kv.student(family, asked)
    optimizer = torch.optim.AdamW(student.groups)
    student.module, _ = processes.prepare(student, optimizer, processes.accelerator(asked))
    return student


def trained(family: str, out: Path, **changes: Any) -> KVStudent:
    asked = train_kv.request(out, **changes)
    student = train_kv.student(family, asked)
    assert train(student, train_kv.pool(), asked, "model").improved
    return student


def moved(family: str, tmp_path: Path, **changes: Any) -> KVStudent:
    """As if trained for long: everything is far from where it was."""
    student = wrapped(family, tmp_path, **changes)
    made = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, values in student._parameters().items():
            values += (0.3 if "log_scale" in name else 0.1) * torch.randn(
                values.shape, generator=made
            )
    return student


class TestPrecision:
    def test_held_out_is_float32(self, tmp_path: Path) -> None:
        """To the bit as without mixed precision, and 0 where nothing is quantized or trained."""
        exact, mixed = (wrapped("llama", tmp_path, precision=p) for p in ("f32", "bf16"))
        ids = train_kv.held_out_ids()
        assert torch.equal(exact.held_out(ids, Q4), mixed.held_out(ids, Q4))
        assert mixed.held_out(ids, Q4).mean() > 1e-4
        assert not mixed.held_out(ids, "f16").any()

    def test_all_is_mixed_in_training(self, tmp_path: Path) -> None:
        student = wrapped("gemma3", tmp_path, precision="bf16")
        seen: dict[str, list[torch.dtype]] = {"o_proj": [], "lm_head": []}
        for name, module in student._model.named_modules():
            end = name.rpartition(".")[2]
            if end in seen:
                module.register_forward_hook(
                    lambda m, args, out, end=end: seen[end].append(out.dtype)
                )
        ids = train_kv.held_out_ids()
        student.loss(ids, Q4, torch.arange(32, 64, 4)).backward()
        assert set(seen["o_proj"]) == {torch.bfloat16} and set(seen["lm_head"]) == {torch.bfloat16}
        for dtypes in seen.values():
            dtypes.clear()
        student.held_out(ids, Q4)
        assert set(seen["o_proj"]) == {torch.float32} and set(seen["lm_head"]) == {torch.float32}
        assert all(p.grad is not None and p.grad.any() for p in student._parameters().values())


class TestLoss:
    @pytest.mark.parametrize("setting", [Q4, "f16"])
    def test_of_all_positions_is_the_held_out_mean(self, tmp_path: Path, setting: str) -> None:
        student = moved("qwen3", tmp_path)
        ids = train_kv.held_out_ids()
        loss = student.loss(ids, setting, torch.arange(32, 64))
        assert loss.item() == pytest.approx(student.held_out(ids, setting).mean().item(), rel=1e-4)
        assert loss.item() > 1e-4

    def test_gradient(self, tmp_path: Path) -> None:
        """With an unquantized cache the loss is smooth: against differences of the loss itself."""
        student = moved("gemma3", tmp_path, lora=2)
        made = torch.Generator().manual_seed(1)
        ids, positions = train_kv.held_out_ids(), torch.arange(32, 64)
        ours = student._parameters()
        way = {n: torch.randn(p.shape, generator=made) for n, p in ours.items()}
        student.loss(ids, "f16", positions).backward()
        # Scales alone cannot change the unquantized model.
        for name, parameter in ours.items():
            size = parameter.grad.abs().max().item()  # type: ignore[union-attr]
            assert (size < 1e-4) == ("log_scale" in name), (name, size)
        slope = sum((p.grad * way[n]).sum().item() for n, p in ours.items())  # type: ignore[operator]

        def at(step: float) -> float:
            with torch.no_grad():
                for name, parameter in ours.items():
                    parameter += step * way[name]
                value = student.loss(ids, "f16", positions).item()
                for name, parameter in ours.items():
                    parameter -= step * way[name]
            return value

        assert (at(1e-3) - at(-1e-3)) / 2e-3 == pytest.approx(slope, rel=0.02)

    def test_teacher_is_the_model_as_it_came(self, tmp_path: Path) -> None:
        for family in ("gemma3", "llama"):
            student = moved(family, tmp_path, scope="all")
            student.held_out(train_kv.held_out_ids(), Q4)
            fresh = TorchModel(train_kv.model(family))
            ids = train_kv.held_out_ids()
            with torch.no_grad():
                ours, theirs = student._teacher.states(ids, None), fresh.states(ids, None)
            assert torch.equal(ours, theirs)

    def test_teacher_moves_along(self, tmp_path: Path) -> None:
        """To another device with the module, all of it: the model is loaded on the CPU."""
        student = train_kv.student("gemma3", train_kv.request(tmp_path))
        student.module.to("meta")
        for tensors in (student._original.parameters(), student._original.buffers()):
            assert {t.device.type for t in tensors} == {"meta"}


class TestChanged:
    @pytest.mark.parametrize("scope", ["scales", "kv", "all"])
    @pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "qwen3", "qwen3moe"])
    def test_a_fresh_model_with_it_is_the_trained_one(
        self, tmp_path: Path, family: str, scope: str
    ) -> None:
        self.check(moved(family, tmp_path, scope=scope), family)

    @pytest.mark.parametrize("family", ["llama", "gemma3"])
    def test_with_updates_of_low_rank(self, tmp_path: Path, family: str) -> None:
        student = moved(family, tmp_path, lora=4)
        assert sum(n.endswith(".b") for n in student.trained()) == 4  # W_k, W_v of both layers
        self.check(student, family)

    def test_updates_of_fused_experts(self, tmp_path: Path) -> None:
        student = moved("qwen3moe", tmp_path, scope="all", lora=3)
        experts = [t.shape for n, t in student.trained().items() if ".experts." in n]
        assert len(experts) == 8 and all(shape[0] == EXPERTS and 3 in shape for shape in experts)
        assert not any(n.endswith("experts.down_proj") for n in student.trained())
        self.check(student, "qwen3moe")

    def check(self, student: KVStudent, family: str) -> None:
        model = train_kv.model(family)
        changed = student.changed()
        assert all(t.dtype == torch.float32 for t in changed.values())
        ours = dict(model.named_parameters())
        for name, values in changed.items():
            assert not torch.equal(ours[name], values), name
            ours[name].copy_(values)
        # What was computed through hooks, updates and norms with (1 + w), from the weights alone.
        ids = train_kv.held_out_ids()
        fresh = TorchModel(model)
        stores = [layer_stores(parse(Q4), y, gguf=fresh.gguf_order, device="cpu")
                  for y in fresh.layers]  # fmt: skip
        with torch.no_grad():
            for lanes in (None, Lanes([stores] * len(ids))):
                ours, theirs = student._student.states(ids, lanes), fresh.states(ids, lanes)
                apart = (ours - theirs).square().mean() / ours.square().mean()
                # Float32's rounding, which here and there turns a code of the cache.
                assert apart < (1e-10 if lanes is None else 1e-3), apart


class TestChosen:
    def test_groups(self, tmp_path: Path) -> None:
        """Fused experts are matrices that Muon does not take."""
        student = train_kv.student("qwen3moe", train_kv.request(tmp_path, scope="all"))
        sizes = {g["name"]: {p.ndim for p in g["params"]} for g in student.groups}
        assert sizes == {"scales": {2}, "norms": {1}, "matrices": {2}, "experts": {3}}

    @pytest.mark.parametrize(("scope", "count"), [("scales", 4), ("kv", 8), ("all", 26)])
    def test_only_the_part_that_reads_text(self, scope: str, count: int) -> None:
        text = dict(num_hidden_layers=2, hidden_size=64, num_attention_heads=2, vocab_size=300,
                    num_key_value_heads=1, head_dim=32, intermediate_size=64)  # fmt: skip
        vision = dict(num_hidden_layers=2, hidden_size=32, intermediate_size=32,
                      num_attention_heads=1, image_size=28, patch_size=14)  # fmt: skip
        config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        assert any("vision_tower" in n and "v_proj" in n for n, _ in model.named_parameters())
        found = parameters.chosen(model, scope)
        assert len(found) == count
        assert all(n.startswith("model.language_model.layers.") for n in found)


class TestScales:
    @pytest.mark.parametrize("family", ["llama", "gemma3"])
    def test_a_fold_to_start_from(self, tmp_path: Path, family: str) -> None:
        """e times queries, keys divided by e: as the weights of the hardened model have it."""
        student = wrapped(family, tmp_path, scope="scales")
        sets, rng = 1 if family == "gemma3" else KV_HEADS, np.random.default_rng(2)
        half = {i: np.exp(rng.normal(size=(sets, DIM // 2))) for i in range(LAYERS)}
        scales = {i: np.concatenate([e, e], 1) for i, e in half.items()}
        student.set_scales(scales)
        before, changed = dict(train_kv.model(family).named_parameters()), student.changed()
        for site in train_kv.sites(family):
            e, added = scales[site.layer], 1.0 if family == "gemma3" else 0.0
            spread = {site.keys[0]: 1 / e, site.queries[0]: e.repeat(HEADS // KV_HEADS, 0)}
            if family == "gemma3":
                spread[site.queries[0]] = e
            for name, factors in spread.items():
                old, new = before[name].double() + added, changed[name].double() + added
                ratio = (new / old).reshape(e.size if name in site.keys else factors.size, -1)
                wanted = torch.from_numpy(factors.reshape(-1, 1)).expand_as(ratio)
                torch.testing.assert_close(ratio, wanted, rtol=1e-3, atol=0)
        ids = train_kv.held_out_ids()
        assert student.held_out(ids, "f16").max() < 1e-6 < student.held_out(ids, Q4).mean()

    @pytest.mark.parametrize("layers", [[0], [0, 1, 2]])
    def test_of_other_layers(self, tmp_path: Path, layers: list[int]) -> None:
        student = train_kv.student("llama", train_kv.request(tmp_path))
        with pytest.raises(ValueError, match="layers"):
            student.set_scales({i: np.ones((KV_HEADS, DIM)) for i in layers})

    def test_of_another_family(self, tmp_path: Path) -> None:
        student = train_kv.student("gemma3", train_kv.request(tmp_path))
        with pytest.raises(ValueError, match=r"\(2, 16\) for \(1, 16\)"):
            student.set_scales({i: np.ones((KV_HEADS, DIM)) for i in range(LAYERS)})


class TestResume:
    @pytest.mark.parametrize("lora", [0, 4])
    def test_to_the_bit(self, tmp_path: Path, lora: int) -> None:
        found = []
        for steps in ((4,), (2, 4)):
            out = tmp_path / f"{len(steps)}"
            for until in steps:
                asked = train_kv.request(out, steps=4, lora=lora, checkpoint_every=0.0)
                student = train_kv.student("llama", asked)
                try:
                    train(student, train_kv.pool(), asked, "model", Stopping(until))
                except Stopped:
                    continue
            found.append((student.trained(), student.changed(), table(out / "held_out.csv")))
        for ours, theirs in zip(*(f[:2] for f in found), strict=True):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[n], theirs[n]) for n in ours)
        assert found[0][2] == found[1][2]


class Stopped(Exception):
    pass


class Stopping:
    """Progress that ends a training after some steps, of the four asked for."""

    def __init__(self, after: int) -> None:
        self.left = after if after < 4 else -1

    def stage(self, text: str) -> None: ...
    def begin(self, text: str, total: float) -> None: ...
    def note(self, text: str) -> None: ...

    def advance(self, done: float) -> None:
        self.left -= 1
        if self.left == -1:
            raise Stopped


def test_activation_checkpointing_is_refused(tmp_path: Path) -> None:
    """Its second forward pass would read an unquantized cache."""
    asked = train_kv.request(tmp_path)
    student = train_kv.student("llama", asked)
    made = processes.accelerator(asked)

    class Sharded:
        distributed_type = processes.accelerate.DistributedType.FSDP
        state = type(
            "State", (), {"fsdp_plugin": type("P", (), {"activation_checkpointing": True})}
        )

    with pytest.raises(NybbleError, match="activation checkpointing"):
        processes.prepare(student, torch.optim.AdamW(student.groups), Sharded)
    assert made.distributed_type == processes.accelerate.DistributedType.NO


@pytest.mark.slow
class TestTwoProcesses:
    CASES = [
        ("ddp", "gemma3", "0"), ("fsdp", "gemma3", "0"), ("layers", "gemma3", "0"),
        ("layers", "llama", "4"),
    ]  # fmt: skip

    @pytest.mark.parametrize(("kind", "family", "lora"), CASES)
    def test_as_one_process_with_twice_the_batch(
        self, tmp_path: Path, kind: str, family: str, lora: str
    ) -> None:
        start = train_kv.student(family, train_kv.request(tmp_path, lora=int(lora))).trained()
        start = {n: t.clone() for n, t in start.items()}
        alone = trained(family, tmp_path / "one", batch=4, accumulate=2, lora=int(lora))
        ranks = launch(kind, tmp_path / "two", 3, family, lora, "f32")
        wanted = {**alone.trained(), **{f"changed.{n}": t for n, t in alone.changed().items()}}
        for tensors in ranks:
            assert tensors.keys() == wanted.keys()
            for name, values in wanted.items():
                before = start.get(name, torch.zeros(()))
                moved = (values - before).abs().max()
                apart = (tensors[name] - values).abs()
                # Sums in another order turn a few codes, and AdamW makes much of small gradients.
                assert apart.mean() <= 0.02 * moved, (name, apart.mean(), moved)
        assert all(torch.equal(ranks[0][n], ranks[1][n]) for n in ranks[0])
        looks = [table(tmp_path / run / "held_out.csv") for run in ("one", "two")]
        for ours, theirs in zip(*looks, strict=True):
            assert float(ours["kld"]) == pytest.approx(float(theirs["kld"]), rel=0.02, abs=1e-6)

    @pytest.mark.parametrize("lora", ["0", "4"])
    def test_shards_resume_to_the_bit(self, tmp_path: Path, lora: str) -> None:
        before = launch("layers", tmp_path, 3, "llama", lora, "f32")
        rows = table(tmp_path / "train.csv")
        (tmp_path / "checkpoints" / "step-0000000003.json").unlink()
        after = launch("layers", tmp_path, 3, "llama", lora, "f32")
        for one, other in zip(before, after, strict=True):
            assert all(torch.equal(one[n], other[n]) for n in one)
        assert table(tmp_path / "train.csv") == rows

    def test_mixed_precision_leaves_the_held_out_passes_alone(self, tmp_path: Path) -> None:
        """Before the first step both look at the same model, one of them told to train in bf16."""
        looks = []
        for precision in ("f32", "bf16"):
            launch("layers", tmp_path / precision, 1, "gemma3", "0", precision)
            looks.append(table(tmp_path / precision / "held_out.csv"))
        assert looks[0][:2] == looks[1][:2]
        losses = [table(tmp_path / p / "train.csv")[0]["loss"] for p in ("f32", "bf16")]
        assert losses[0] != losses[1] and float(losses[1]) == pytest.approx(
            float(losses[0]), rel=0.2
        )
