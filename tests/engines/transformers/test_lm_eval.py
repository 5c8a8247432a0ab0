"""lm-evaluation-harness with the model `nybble`, on tiny random models and local tasks."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("lm_eval", reason='needs lm-eval: pip install -e ".[lm-eval]"')

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from tiny_torch import config_of, randomize, text  # noqa: E402

from nybble.engines.transformers.attention import NAME, Lanes, reading  # noqa: E402
from nybble.engines.transformers.calibrate import calibrate  # noqa: E402
from nybble.engines.transformers.calibration_file import save  # noqa: E402
from nybble.engines.transformers.lm_eval import register  # noqa: E402
from nybble.engines.transformers.lm_eval_model import NybbleLM  # noqa: E402
from nybble.errors import CacheNotReadError, NybbleError  # noqa: E402
from nybble.formats import parse  # noqa: E402
from nybble.formats.codec import layer_stores  # noqa: E402

KINDS = {"llama": {}, "gemma3": {}, "gemma2": {}, "narrow": {"head_dim": 40}}
SPECIAL = ["<pad>", "<s>", "</s>"]


def write_tokenizer(folder: Path) -> None:
    """Token i is the word wi."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    words = [*SPECIAL, *(f"w{i}" for i in range(3, 128))]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([AddedToken(w, special=True) for w in SPECIAL])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    made.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>",
                "tokenizer_class": "PreTrainedTokenizerFast"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    found = {}
    for name, changes in KINDS.items():
        folder = tmp_path_factory.mktemp("models") / name
        # Tied embeddings would make greedy answers repeat one word, whatever the cache does.
        kind = "llama" if name == "narrow" else name
        config = config_of(kind, tie_word_embeddings=False, **changes)
        model = randomize(transformers.AutoModelForCausalLM.from_config(config))
        model.lm_head.weight.data[: len(SPECIAL)] = 0  # never the likeliest: no answer ends early
        model.save_pretrained(folder)
        write_tokenizer(folder)
        found[name] = str(folder)
    return found


def words(n: int, seed: int) -> str:
    return " ".join(f"w{i}" for i in text(n, seed))


def requests(kind: str, *args: tuple[Any, ...], task: str = "t") -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=a, idx=0, metadata=(task, i, 1))
        for i, a in enumerate(args)
    ]


PAIRS = [(words(30, 1), " " + words(3, 2)), (words(12, 3), " " + words(1, 4)),
         (words(22, 5), " " + words(5, 6))]  # fmt: skip
SCORED = requests("loglikelihood", *PAIRS)
ROLLED = requests("loglikelihood_rolling", (words(40, 7),), (words(25, 8),))
PROMPTS = [words(n, 40 + i) for i, n in enumerate((30, 11, 23, 11))]


def generated(*prompts: str, tokens: int = 12) -> list[Instance]:
    options = {"until": [], "max_gen_toks": tokens, "do_sample": False}
    return requests("generate_until", *((p, options) for p in prompts))


def opened(folder: str, kv: str, **options: Any) -> NybbleLM:
    return NybbleLM(pretrained=folder, kv=kv, device="cpu", **options)


def exact(folder: str, kv: str, **options: Any) -> NybbleLM:
    """In float64: in float32 another summation order tips a code over to its neighbour."""
    model = opened(folder, kv, **options)
    model._model.double()
    return model


def log_likelihoods(model: HFLM) -> list[float]:
    found = [value for value, _ in model.loglikelihood(SCORED, disable_tqdm=True)]
    return found + model.loglikelihood_rolling(ROLLED, disable_tqdm=True)


def ids(model: HFLM, prompt: str) -> list[int]:
    found: list[int] = model.tok_encode(prompt)
    return found


@torch.inference_mode()
def greedy(model: NybbleLM, prompt: str, tokens: int, kv: str) -> str:
    """Greedy decoding by one full forward pass for each token, without any cache."""
    ours = model._torch
    stores = [layer_stores(parse(kv), layer, gguf=ours.gguf_order) for layer in ours.layers]
    made = ids(model, prompt)
    start = len(made)
    for _ in range(tokens):
        made.append(int(ours.logits(ours.hidden(made, Lanes([stores]))[0, -1:]).argmax()))
    found: str = model.tok_decode(made[start:])
    return found


class TestScores:
    @pytest.mark.parametrize("kind", ["llama", "gemma3", "gemma2"])
    def test_sixteen_bits_as_lm_eval(self, folders: dict[str, str], kind: str) -> None:
        stock = HFLM(pretrained=folders[kind], device="cpu", dtype="float32", batch_size=2)
        expected = log_likelihoods(stock)
        # float32 stores are no change at all; f16 ones round at the eleventh bit.
        for kv, tolerance in (("f32/f32", 1e-5), ("f16/f16", 2e-3)):
            model = opened(folders[kind], kv, batch_size=2)
            assert log_likelihoods(model) == pytest.approx(expected, rel=tolerance)
        made = stock.generate_until(generated(*PROMPTS), disable_tqdm=True)
        alone = opened(folders[kind], "f32/f32").generate_until(generated(*PROMPTS))
        assert len(set(made)) == 4 and alone == made

    @pytest.mark.parametrize("kv", ["q4_0/q4_0", "f16/q4_0", "q4_0/f16", "kivi2+chunk32"])
    def test_quantized_differ(self, folders: dict[str, str], kv: str) -> None:
        plain = log_likelihoods(opened(folders["llama"], "f16/f16"))
        found = log_likelihoods(opened(folders["llama"], kv))
        assert max(abs(a - b) for a, b in zip(plain, found, strict=True)) > 1e-2

    @pytest.mark.parametrize("kv", ["q4_0/q4_0", "q4_0+first4", "q4_0+recent5", "q4_0+chunk8"])
    @pytest.mark.parametrize("kind", ["gemma3", "gemma2"])
    def test_batches(self, folders: dict[str, str], kind: str, kv: str) -> None:
        alone = log_likelihoods(exact(folders[kind], kv))
        together = log_likelihoods(exact(folders[kind], kv, batch_size=3))
        assert together == pytest.approx(alone, rel=1e-5)

    def test_as_the_lockstep_model_scores(self, folders: dict[str, str]) -> None:
        model = opened(folders["gemma3"], "q4_0+chunk8")
        context, following = PAIRS[0]
        tokens, n = ids(model, context + following), len(following.split())
        ours = model._torch
        stores = [layer_stores(parse("q4_0+chunk8"), layer) for layer in ours.layers]
        with torch.inference_mode():
            logits = ours.logits(ours.hidden(tokens[:-1], Lanes([stores]))[0])
        scores = logits.log_softmax(-1)[range(-n, 0), tokens[-n:]].sum()
        found = model.loglikelihood(requests("loglikelihood", PAIRS[0]), disable_tqdm=True)
        assert found[0][0] == pytest.approx(float(scores), rel=1e-5)

    def test_auto_batch(self, folders: dict[str, str]) -> None:
        model = opened(folders["llama"], "q8_0/q8_0", batch_size="auto", max_batch_size=2,
                       max_length=64)  # fmt: skip
        found = [v for v, _ in model.loglikelihood(SCORED, disable_tqdm=True)]
        alone = opened(folders["llama"], "q8_0/q8_0").loglikelihood(SCORED, disable_tqdm=True)
        assert found == pytest.approx([v for v, _ in alone], rel=1e-3)


class TestGeneration:
    # Prompt and answer are far longer than the sliding windows of 8.
    @pytest.mark.parametrize("kv", ["q8_0/q8_0", "q4_0+first4", "q4_0+recent5", "nvfp4"])
    @pytest.mark.parametrize("kind", ["gemma3", "gemma2", "llama"])
    def test_as_full_passes(self, folders: dict[str, str], kind: str, kv: str) -> None:
        model = exact(folders[kind], kv)
        found = model.generate_until(generated(PROMPTS[0], tokens=20), disable_tqdm=True)
        assert found == [greedy(model, PROMPTS[0], 20, kv)]
        assert len(found[0].split()) == 20

    @torch.inference_mode()
    def test_chunks_end_with_the_prompt(self, folders: dict[str, str]) -> None:
        """A prefill sees its own chunk raw; a token that is decoded sees nothing raw."""
        model = exact(folders["gemma3"], "q4_0+chunk8")
        found = model.generate_until(generated(PROMPTS[0]), disable_tqdm=True)[0]
        # The same weights outside of the class under test.
        fresh = transformers.AutoModelForCausalLM.from_pretrained(
            folders["gemma3"], attn_implementation=NAME, dtype=torch.float64
        )
        made, cache = ids(model, PROMPTS[0]), transformers.DynamicCache()
        for step in range(12):
            setting = "q4_0+chunk8" if step == 0 else "q4_0"
            stores = [layer_stores(parse(setting), layer) for layer in model._torch.layers]
            new = made if step == 0 else made[-1:]
            with reading(lanes=Lanes([stores])):
                out = fresh(torch.tensor([new]), past_key_values=cache, use_cache=True)
            made.append(int(out.logits[0, -1].argmax()))
        assert found == model.tok_decode(made[-12:])
        assert found != greedy(model, PROMPTS[0], 12, "q4_0+chunk8")

    @pytest.mark.parametrize(
        "kv", ["q4_0/q4_0", "q4_0+first4", "q4_0+recent5", "q4_0+chunk8", "kivi4+chunk32"]
    )
    @pytest.mark.parametrize("kind", ["gemma3", "gemma2"])
    def test_rows_of_a_batch(self, folders: dict[str, str], kind: str, kv: str) -> None:
        alone = exact(folders[kind], kv).generate_until(generated(*PROMPTS), disable_tqdm=True)
        batch = exact(folders[kind], kv, batch_size=4)
        assert batch.generate_until(generated(*PROMPTS), disable_tqdm=True) == alone

    def test_stop_words_and_own_cache(self, folders: dict[str, str], tmp_path: Path) -> None:
        import shutil

        folder = Path(shutil.copytree(folders["gemma3"], tmp_path / "model"))
        path = folder / "generation_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()),
                                    "cache_implementation": "hybrid"}))  # fmt: skip
        model = opened(str(folder), "q8_0/q8_0", batch_size=2)
        whole = model.generate_until(generated(*PROMPTS[:2]), disable_tqdm=True)
        stop = whole[0].split()[4]
        options = {"until": [stop], "max_gen_toks": 12}
        cut = model.generate_until(
            requests("generate_until", *((p, options) for p in PROMPTS[:2])), disable_tqdm=True
        )
        assert cut[0].split() == whole[0].split()[: whole[0].split().index(stop)]

    def test_beams(self, folders: dict[str, str]) -> None:
        model = opened(folders["gemma3"], "q4_0/q4_0", batch_size=2)
        options = {"until": [], "max_gen_toks": 6, "do_sample": False, "num_beams": 3}
        found = model.generate_until(
            requests("generate_until", *((p, options) for p in PROMPTS)), disable_tqdm=True
        )
        assert all(len(made.split()) <= 6 for made in found)


class TestGuards:
    def test_cold_cache(self, folders: dict[str, str]) -> None:
        model = opened(folders["llama"], "q4_0+chunk64")
        for call in (lambda: model.loglikelihood(SCORED), lambda: log_likelihoods(model),
                     lambda: model.loglikelihood_rolling(ROLLED)):  # fmt: skip
            with pytest.raises(CacheNotReadError, match="not read") as info:
                call()
            assert "q4_0/q4_0+chunk64" in str(info.value)
        # Tokens that are decoded do read what was stored.
        assert model.generate_until(generated(PROMPTS[0]), disable_tqdm=True)

    def test_every_task_counts(self, folders: dict[str, str]) -> None:
        model = opened(folders["llama"], "q4_0+chunk16")
        short = requests("loglikelihood", ("w3 w4", " w5"), task="short")
        assert model.loglikelihood(SCORED, disable_tqdm=True)
        with pytest.raises(CacheNotReadError, match="longest text of short"):
            model.loglikelihood(SCORED + short, disable_tqdm=True)

    def test_generation_within_the_window(self, folders: dict[str, str]) -> None:
        model = opened(folders["llama"], "q4_0+recent64")
        with pytest.raises(CacheNotReadError):
            model.generate_until(generated(PROMPTS[0]), disable_tqdm=True)
        assert model.generate_until(generated(PROMPTS[0], tokens=50), disable_tqdm=True)

    def test_hook_that_reads_nothing(
        self, folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from nybble.formats.codec import SideStore

        model = opened(folders["llama"], "q4_0/q4_0")
        monkeypatch.setattr(SideStore, "roundtrip", lambda self, x, *through: x)
        with pytest.raises(CacheNotReadError):
            model.loglikelihood(SCORED, disable_tqdm=True)

    def test_block_does_not_fit(self, folders: dict[str, str]) -> None:
        with pytest.raises(NybbleError, match="does not divide") as info:
            opened(folders["narrow"], "q4_0/q4_0")
        assert "head size 40" in str(info.value)

    def test_damaged_tokenizer(self, folders: dict[str, str], tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_text("{")
        with pytest.raises(NybbleError, match="cannot read the tokenizer"):
            opened(folders["llama"], "q4_0", tokenizer=str(tmp_path))


class TestModels:
    def test_calibration(self, folders: dict[str, str], tmp_path: Path) -> None:
        path = tmp_path / "c.safetensors"
        plain = opened(folders["llama"], "q4_0/q4_0")
        import numpy as np

        texts = [np.array(text(300, seed), dtype=np.int32) for seed in range(2)]
        save(calibrate(plain._torch, texts, plain._fingerprint), path)
        found = log_likelihoods(opened(folders["llama"], "q4_0+mean", calibration=str(path)))
        assert found != log_likelihoods(plain)
        with pytest.raises(NybbleError, match="of another model"):
            opened(folders["gemma3"], "q4_0+mean", calibration=str(path))

    def test_gguf(self, folders: dict[str, str], tiny_model: Path) -> None:
        pytest.importorskip("gguf")
        model = opened(str(tiny_model), "q4_0/q4_0", tokenizer=folders["llama"])
        assert model._torch.gguf_order and log_likelihoods(model)

    def test_info(self, folders: dict[str, str]) -> None:
        info = opened(folders["llama"], "q8_0/q4_0").get_model_info()
        assert info["kv"] == "q8_0/q4_0" and info["kv_bits"] == 6.5
        assert info["kv_cache"].startswith("simulated") and len(info["model_sha"]) == 64

    def test_narrow_weights(self, folders: dict[str, str]) -> None:
        model = opened(folders["gemma3"], "f16/f16", dtype="bfloat16")
        assert model.get_model_info()["model_dtype"] == torch.bfloat16
        wide = log_likelihoods(opened(folders["gemma3"], "f16/f16"))
        assert log_likelihoods(model) == pytest.approx(wide, rel=0.05)
        assert model.generate_until(generated(*PROMPTS), disable_tqdm=True)

    def test_network_is_lm_evals_again(
        self, folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import huggingface_hub

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        opened(folders["llama"], "q8_0/q8_0")
        assert not huggingface_hub.is_offline_mode() and "HF_HUB_OFFLINE" not in os.environ

    def test_registered(self) -> None:
        register()
        register()
        registry = importlib.import_module("lm_eval.api.registry")
        assert registry.get_model("nybble") is NybbleLM
        assert "hf" in registry.model_registry


TASKS = {
    "tiny_choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}]
""",
    "tiny_answer": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{text}}"
generation_kwargs: {until: [], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
""",
    "tiny_text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}]
""",
}


@pytest.mark.slow
class TestCommand:
    """lm-eval's own command line, in a process of its own."""

    @pytest.fixture
    def tasks(self, tmp_path: Path) -> Path:
        folder = tmp_path / "tasks"
        folder.mkdir()
        data = folder / "data.jsonl"
        data.write_text("".join(
            json.dumps({"question": words(10 + 3 * i, i), "text": words(50, 10 + i), "answer": 0,
                        "choices": [words(n, 20 + i + n) for n in (1, 2, 3)]}) + "\n"
            for i in range(4)
        ))  # fmt: skip
        for name, rest in TASKS.items():
            source = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\n"
            (folder / f"{name}.yaml").write_text(f"task: {name}\n{source}test_split: test{rest}")
        return folder

    def run(
        self, tasks: Path, model: str, *args: str
    ) -> tuple[subprocess.CompletedProcess[str], Any]:
        out = tasks.parent / "out" / model / "_".join(args).replace("/", "-")
        environment = {**os.environ, "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1",
                       "HF_HOME": str(tasks.parent / "hf")}  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "nybble.engines.transformers.lm_eval", "run", "--model", model,
             "--model_args", ",".join(args), "--tasks", ",".join(TASKS), "--include_path",
             str(tasks), "--device", "cpu", "--batch_size", "2", "--output_path",
             str(out / "r.json"), "--log_samples"],
            capture_output=True, text=True, env=environment, timeout=280, check=False,
        )  # fmt: skip
        found = [json.loads(p.read_text()) for p in out.rglob("r_*.json")]
        return done, found[0] if found else None

    def test_tasks(self, folders: dict[str, str], tasks: Path) -> None:
        where = f"pretrained={folders['gemma3']}"
        stock = self.run(tasks, "hf", where, "dtype=float32")[1]
        plain = self.run(tasks, "nybble", where)[1]
        done, found = self.run(tasks, "nybble", where, "kv=q4_0/q4_0+first4")
        assert done.returncode == 0 and "tiny_choice" in done.stdout
        assert plain["config"]["kv"] == "f16/f16"
        assert found["config"]["kv"] == "q4_0/q4_0+first4"
        expected, sixteen, four = (
            r["results"]["tiny_text"]["word_perplexity,none"] for r in (stock, plain, found)
        )
        assert sixteen == pytest.approx(expected, rel=2e-3)
        assert abs(four / expected - 1) > 1e-2

    def test_errors(self, folders: dict[str, str], tasks: Path) -> None:
        where = f"pretrained={folders['gemma3']}"
        done = self.run(tasks, "nybble", where, "kv=q4_7")[0]
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert "error: unknown KV type" in done.stderr
