"""Files to import, and what a user may say of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nybble.formats import parse
from nybble.results.importers.source import Given, Source, read_source

LOGS = Path(__file__).parents[2] / "data" / "imports"
LM_EVAL: dict[str, Any] = {
    "results": {
        "hellaswag": {
            "alias": "hellaswag", "acc,none": 0.2891, "acc_stderr,none": 0.0045,
            "acc_norm,none": 0.3114, "acc_norm_stderr,none": "N/A",
        },
        "gsm8k": {"exact_match,strict-match": 0.02, "exact_match_stderr,strict-match": 0.004},
        "wikitext": {"word_perplexity,none": 37.4, "word_perplexity_stderr,none": "N/A"},
    },
    "groups": {"mmlu": {"alias": "mmlu", "acc,none": 0.25, "acc_stderr,none": 0.003}},
    "configs": {}, "versions": {"hellaswag": 1.0}, "n-shot": {"hellaswag": 0, "gsm8k": 5},
    "higher_is_better": {"hellaswag": {"acc": True, "acc_norm": True},
                         "wikitext": {"word_perplexity": False}},
    "n-samples": {"hellaswag": {"original": 10042, "effective": 100}},
    "config": {"model": "hf", "model_args": "pretrained=openai/gpt2,dtype=float32"},
    "model_name": "openai/gpt2", "lm_eval_version": "0.4.13",
}  # fmt: skip


def given(**told: Any) -> Given:
    """What a user tells; KV settings are read as the command line reads them."""
    return Given(read_setting=lambda text: str(parse(text)), **told)


def source(folder: Path, text: str | bytes, name: str = "file") -> Source:
    """A file with this content, read."""
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_source(path)


def lm_eval_text(**changes: Any) -> str:
    """A summary of lm-eval, changed at its top."""
    return json.dumps({**LM_EVAL, **changes})
