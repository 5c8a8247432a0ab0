"""Bytes that engines take for a KV cache, as a file that other planners can be held against.

    python bench/conformance.py

Writes docs/conformance/kv-bytes.json out of what is known for sure: results of engines' own
functions (bench/results/plan_vllm.json, plan_pools.json, plan_llamacpp.json where it is there),
real cache objects of transformers on torch's meta device, and cases worked by hand from named
sources (conformance_hand.py). Nothing here asks nybble's own planner; that is what
tests/planning/test_conformance.py does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conformance_hand import HAND
from conformance_models import MODELS
from nybble.formats.registry import ALIASES

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results"
TARGET = ROOT / "docs/conformance/kv-bytes.json"
ABOUT = [
    "Bytes of the KV cache of known models in several engines, for any planner to be tested with.",
    "models: config has the published config.json fields that matter (text part), null for shapes "
    "that are nobody's model; layers are order, a string of keys of shapes, one a layer.",
    "kind: global, sliding (window tokens, the current one included), latent (MLA; k_dim is latent "
    "plus RoPE part), recurrent (conv and recurrent are elements of a sequence's states), shared "
    "(reads the cache of layer source).",
    "cases: setting is K type / V type in nybble's names (docs/formats.md); context is tokens of "
    "each of sequences; bytes are those of all cards together, and of what counts names: cache "
    "(scales, padding and reserved blocks included), state (of recurrent layers), scratch (copies "
    "of cache that the engine makes).",
    "how: engine where the engine's own code gave the number, hand-worked where arithmetic did.",
]


def case(model: str, engine: str, version: str, setting: str, n_bytes: int, source: str,
         **more: Any) -> dict[str, Any]:  # fmt: skip
    """One case, with what is usual left out of the call."""
    usual = {"context": 0, "sequences": 1, "cards": 1, "options": {}, "counts": ["cache"]}
    how = "hand-worked" if "arithmetic" in more else "engine"
    return {"model": model, "engine": engine, "version": version, "setting": setting,
            **usual, **more, "bytes": n_bytes, "how": how, "source": source}  # fmt: skip


def both(name: str) -> str:
    """One type for K and V."""
    return f"{name}/{name}"


def vllm() -> list[dict[str, Any]]:
    """Blocks of one request as vLLM's planner counts them, and the null block."""
    result = json.loads((RESULTS / "plan_vllm.json").read_text(encoding="utf-8"))
    names = {"auto": "f16/f16", **ALIASES}
    return [
        case(
            x["model"], "vllm", "0.33.0", names.get(x["type"], both(x["type"])),
            x["cards"] * (x["needed_bytes"] + x["block_bytes"]),
            "bench/plan_vllm.py: kv_cache_planning of vLLM 0.33.0 and 0.32.0, and the null block",
            context=x["context"], cards=x["cards"], counts=["cache", "state"],
            options={"kv_cache_dtype": x["type"],
                     "max_num_batched_tokens": result["in_flight"] // 2},
        )
        for x in result["cases"]
    ]  # fmt: skip


def lmdeploy(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Blocks of 64 tokens as LMDeploy lays them out, 128 of them and one reserved."""
    found = [
        case(
            x["model"], "lmdeploy", result["version"], both(x["type"]),
            129 * x["bytes"] * x["cards"],
            "bench/plan_pools.py: build_block_cache_plan(...).logical_block_nbytes x (128 + 1 "
            "reserved, config_builder.py)",
            context=128 * x["block"], cards=x["cards"],
        )
        for x in result["blocks"]
    ]  # fmt: skip
    slot = result["qwen3_next_slot"]
    source = "bench/plan_pools.py: get_state_slot_nbytes x (max_batch_size 128 + 2)"
    return [*found, case("qwen3-next-80b", "lmdeploy", result["version"], "f16/f16", 130 * slot,
                         source, context=8192, counts=["state"])]  # fmt: skip


def sglang(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Tokens as SGLang's configurators size them, and the one page that padded tokens write."""
    found = [
        case(
            x["model"], "sglang", result["version"], both(x["type"]),
            8192 * x["bytes"] * x["cards"],
            "bench/plan_pools.py: DefaultPoolConfigurator._compute_cell_size x (8,191 + 1)",
            context=8191, cards=x["cards"],
            counts=["cache", "scratch"] if x["type"] == "nvfp4" else ["cache"],
        )
        for x in result["cells"]
    ]  # fmt: skip
    for x in result["hybrid"]:
        wide = (x["full_tokens"] + 1) * x["full_token_bytes"]
        narrow = (x["sliding_tokens"] + 1) * x["sliding_token_bytes"]
        found.append(case(
            x["model"], "sglang", result["version"], both(x["type"]), (wide + narrow) * x["cards"],
            "bench/plan_pools.py: HybridSWAPoolConfigurator, swa_full_tokens_ratio 0.8",
            context=x["tokens"], cards=x["cards"],
        ))  # fmt: skip
    return found


def transformers_cache(model: str, context: int, sequences: int) -> int:
    """Bytes of the storages of a DynamicCache after a prompt and one decoded token."""
    import torch
    from transformers import AutoConfig, DynamicCache

    fields = {k: v for k, v in MODELS[model]["config"].items() if k != "model_type"}
    config = AutoConfig.for_model(MODELS[model]["config"]["model_type"], **fields)
    kept = DynamicCache(config=config)
    layers = [MODELS[model]["shapes"][key] for key in MODELS[model]["order"]]
    kinds = {"global": "DynamicLayer", "latent": "DynamicLayer", "shared": "DummyLayer",
             "sliding": "DynamicSlidingWindowLayer"}  # fmt: skip
    if [type(x).__name__ for x in kept.layers] != [kinds[x["kind"]] for x in layers]:
        raise SystemExit(f"{model}: the layers are not those that transformers makes of its config")
    total = 0
    for cached, layer in zip(kept.layers, layers, strict=True):
        if layer["kind"] == "shared":
            continue
        k, v = layer["k_dim"], layer["v_dim"]
        if layer["kind"] == "latent":
            k, v = layer["k_dim"] - layer["rope_dim"], layer["rope_dim"]
        for n in (context - 1, 1):
            sides = [
                torch.empty(
                    sequences, layer["kv_heads"], n, dim, dtype=torch.bfloat16, device="meta"
                )
                for dim in (k, v)
            ]
            cached.update(*sides)
        total += sum(t.untyped_storage().nbytes() for t in (cached.keys, cached.values))
    return total


def transformers() -> list[dict[str, Any]]:
    """Real cache objects of the models' shapes; a sliding view is counted with its storage."""
    from transformers import __version__

    source = "DynamicCache(config) on the meta device: context - 1 tokens, then one; storages"
    return [
        case(model, "transformers", __version__, "f16/f16",
             transformers_cache(model, context, sequences), source, context=context,
             sequences=sequences)
        for model in ("llama-3.1-8b", "gemma-3-27b", "gemma-4-31b", "gemma-4-e4b", "gpt-oss-20b",
                      "deepseek-v3")
        for context, sequences in ((100, 1), (1024, 1), (8192, 4), (131072, 1))
    ]  # fmt: skip


def llamacpp() -> list[dict[str, Any]]:
    """What llama.cpp allocates for models of these shapes, a stream for each slot."""
    path = RESULTS / "plan_llamacpp.json"
    if not path.is_file():
        return []
    result = json.loads(path.read_text(encoding="utf-8"))
    return [
        case(model, "llama.cpp", str(result["version"]), x["setting"], x["kv_engine"],
             "bench/plan_llamacpp.py: llama.cpp's own account of a dry run, -np sequences",
             context=x["context"], sequences=x["slots"], counts=["cache", "state"])
        for model, found in result["models"].items() if model in MODELS
        for x in found["rows"] if not x["unified"]
    ]  # fmt: skip


def hand() -> list[dict[str, Any]]:
    """Cases worked by hand: the arithmetic is stored and gives the bytes."""
    return [
        case(x["model"], x["engine"], x["version"], x["setting"],
             eval(x["arithmetic"], {"__builtins__": {}}), x["source"],
             **{k: x[k] for k in ("context", "sequences", "counts", "arithmetic") if k in x})
        for x in HAND
    ]  # fmt: skip


def write(cases: list[dict[str, Any]]) -> None:
    """One line for a model, one for a case, so that a change is a line."""

    def block(entries: list[str]) -> str:
        return ",\n".join("  " + entry for entry in entries)

    def line(data: Any) -> str:
        return json.dumps(data, ensure_ascii=False)

    about, rows = (block([line(x) for x in some]) for some in (ABOUT, cases))
    models = block([f"{line(name)}: {line(model)}" for name, model in MODELS.items()])
    text = (
        f'{{\n "format": 1,\n "about": [\n{about}\n ],\n "models": {{\n{models}\n }},\n'
        f' "cases": [\n{rows}\n ]\n}}\n'
    )
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(text, encoding="utf-8")


def main() -> None:
    """Collect and write."""
    pools = json.loads((RESULTS / "plan_pools.json").read_text(encoding="utf-8"))
    parts = {
        "vllm": vllm(),
        "lmdeploy": lmdeploy(pools["lmdeploy"]),
        "sglang": sglang(pools["sglang"]),
        "transformers": transformers(),
        "llama.cpp": llamacpp(),
        "by hand": hand(),
    }
    write([x for cases in parts.values() for x in cases])
    print(", ".join(f"{name}: {len(cases)}" for name, cases in parts.items()))
    print(f"{TARGET.relative_to(ROOT)}: {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
