"""A model folder, as Hugging Face lays it out: what it must hold and what is refused, unopened.

Nothing here needs torch and nothing reads weights: config.json, the headers of the safetensors
files and the names of the rest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from nybble.errors import ModelFileError
from nybble.models.file_kinds import show
from nybble.models.open_file import read_object, read_text
from nybble.models.safetensors_header import read_header

NEEDED = "config.json, tokenizer.json and model.safetensors (or its parts and index)"
INDEX = "model.safetensors.index.json"
MAX_SHARDS = 10_000
_SINGLE = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_TO_SAFETENSORS = (
    "where you trust the file, load it in transformers and write it with "
    'model.save_pretrained("NEW FOLDER"), which makes safetensors'
)
_TO_TOKENIZER_JSON = (
    "where transformers and sentencepiece are installed: "
    'AutoTokenizer.from_pretrained("FOLDER").save_pretrained("FOLDER") writes tokenizer.json'
)
# Classes of `architectures` that do not predict the next token.
_NOT_CAUSAL = re.compile(r"MaskedLM|Classification|QuestionAnswering|MultipleChoice|PreTraining$")
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len")


def names_in(folder: Path) -> list[str]:
    """Names of the files in a folder; looks at no more than 10,000 entries.

    Raises:
        ModelFileError: the folder cannot be read.
    """
    try:
        return sorted(p.name for p in islice(folder.iterdir(), 10_000) if not p.is_dir())
    except OSError as e:
        raise ModelFileError(f"Cannot read the model folder: {e.strerror or e}", seen=folder,
                             hint="check the permissions of the folder") from e  # fmt: skip


def read_config(folder: Path, *, packed: bool = False) -> dict[str, Any]:
    """Return config.json, checked for what nybble does not load.

    Args:
        folder: of the model.
        packed: whether quantized weights will do.

    Raises:
        ModelFileError: there is none, it is damaged, or the model needs code of its own, is
            quantized, is an adapter, or does not predict the next token.
    """
    names = names_in(folder)
    if "config.json" not in names:
        raise _no_config(folder, names)
    config = read_object(folder / "config.json")
    parts = [config, *_nested(config)]
    if any(part.get("auto_map") for part in parts):
        raise ModelFileError("This model needs Python code that comes with it, and nybble runs no "
                             "code from model folders",
                             seen=f"auto_map in {folder / 'config.json'}",
                             allowed="models that transformers itself knows",
                             hint="if transformers knows this model_type today, delete auto_map "
                             "from config.json")  # fmt: skip
    kind = config.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise ModelFileError("config.json does not say what model this is",
                             seen=f"model_type {show(kind)} in {folder / 'config.json'}",
                             allowed='a name such as "llama"',
                             hint="take config.json from where the model came from")  # fmt: skip
    method = quantization(config)
    if method is not None and not packed:
        raise ModelFileError("The weights of this model are quantized, which would hide what "
                             "the KV cache costs", seen=f"quantization_config: {show(method)}",
                             allowed="weights in float32, float16 or bfloat16",
                             hint="use the model's unquantized weights")  # fmt: skip
    if "adapter_config.json" in names:
        raise ModelFileError("This folder holds an adapter (LoRA) for a model",
                             seen=folder / "adapter_config.json", allowed="a whole model",
                             hint="merge the adapter into its model (peft: merge_and_unload), or "
                             "move adapter_config.json away")  # fmt: skip
    named = config.get("transformers_weights")
    if named is not None and named not in (_SINGLE, INDEX):
        raise ModelFileError("config.json names weights of its own, which nybble does not check",
                             seen=f"transformers_weights: {show(named)}",
                             allowed=f"{_SINGLE} or {INDEX}",
                             hint="delete transformers_weights from config.json")  # fmt: skip
    classes = config.get("architectures")
    classes = [c for c in classes if isinstance(c, str)] if isinstance(classes, list) else []
    not_causal = bool(classes) and all(_NOT_CAUSAL.search(c) for c in classes)
    if config.get("is_encoder_decoder") is True or not_causal:
        raise ModelFileError("This model does not predict the next token of a text",
                             seen=f"{show(kind)}: {show(', '.join(classes) or 'encoder-decoder')}",
                             allowed="a causal language model",
                             hint="name the folder of a text generation model")  # fmt: skip
    return config


def quantization(config: Mapping[str, Any]) -> str | None:
    """How config.json says the weights are quantized, for example "torchao"; None if not."""
    for part in (config, *_nested(config)):
        method = part.get("quantization_config") or part.get("compression_config")
        if method:
            return str(method.get("quant_method") if isinstance(method, Mapping) else method)
    return None


def context_length(config: Mapping[str, Any]) -> int | None:
    """Tokens the model was trained for; None when config.json leaves it to the model class."""
    for part in (*_nested(config), config):  # of a multimodal model, that of its text part
        for key in _CONTEXT_KEYS:
            value = part.get(key)
            if type(value) is int and 0 < value < 1 << 31:
                return value
    return None


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors files of the model, every header read and checked.

    Raises:
        ModelFileError: there are none, a part is missing or damaged, or the index is wrong.
    """
    names = names_in(folder)
    if _SINGLE in names:  # as transformers does: the single file before the index
        header = read_header(folder / _SINGLE)
        if not header.tensors:
            raise ModelFileError(f"{_SINGLE} holds no tensors", seen=folder / _SINGLE,
                                 hint="download the file again")  # fmt: skip
        return (folder / _SINGLE,)
    if INDEX in names:
        return _shards(folder)
    raise _no_weights(folder, names)


def check_tokenizer(folder: Path) -> None:
    """Refuse a folder without tokenizer.json.

    Raises:
        ModelFileError: it is missing; says which other tokenizer files are there.
    """
    names = names_in(folder)
    if "tokenizer.json" in names:
        return
    others = [n for n in names if re.match(r"(tokenizer|vocab|merges|tekken|spiece)", n)]
    slow = [n for n in others if n.endswith((".model", ".txt")) or n == "vocab.json"]
    if slow:
        raise ModelFileError(f"The tokenizer is there only as {' and '.join(slow)}, which nybble "
                             "does not read", seen=folder, allowed="tokenizer.json",
                             hint=_TO_TOKENIZER_JSON)  # fmt: skip
    found = f"{folder}: {', '.join(others)}" if others else folder
    raise ModelFileError("The model folder has no tokenizer", seen=found, allowed="tokenizer.json",
                         hint="copy tokenizer.json and tokenizer_config.json from where the model "
                         "came from")  # fmt: skip


def vocabulary_hash(folder: Path) -> str:
    """SHA-256 of a folder's vocabulary, to tell whether two models share one.

    Raises:
        ModelFileError: tokenizer.json is missing or damaged.
    """
    model = read_object(folder / "tokenizer.json").get("model")
    text = json.dumps(model, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def chat_template(folder: Path) -> str | None:
    """The chat template, from the first of the places transformers looks in; None if there is none.

    Raises:
        ModelFileError: the file that should hold it is damaged.
    """
    names = names_in(folder)
    if "chat_template.jinja" in names:
        return read_text(folder / "chat_template.jinja") or None
    for name in ("tokenizer_config.json", "chat_template.json"):
        if name not in names:
            continue
        value = read_object(folder / name).get("chat_template")
        if isinstance(value, list):  # of {"name": ..., "template": ...}
            listed = [t for t in value if isinstance(t, dict) and t.get("name") == "default"]
            value = listed[0].get("template") if listed else None
        if value is not None and not isinstance(value, str):
            raise ModelFileError(f"{name}: the chat template is no text", seen=show(value),
                                 allowed="a text, or a list with one named default",
                                 hint=f"take {name} from where the model came from")  # fmt: skip
        if value:
            return value
    return None


def _nested(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The configs inside a config: that of the text model first, then of the others."""
    keys = sorted(config, key=lambda k: (k != "text_config", k))
    return (config[k] for k in keys if k.endswith("_config") and isinstance(config[k], dict)
            and not k.startswith(("quantization", "compression")))  # fmt: skip


def _shards(folder: Path) -> tuple[Path, ...]:
    """Check the parts of a model against their index."""
    again = "download the model again"
    weight_map = read_object(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{INDEX} does not say where the weights are",
                             seen=f"weight_map {show(weight_map)}",
                             allowed="an object of tensor and file names", hint=again)  # fmt: skip
    tensors: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        # A plain name: no path leads out of the folder, by ".." or from the root.
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise ModelFileError(f"{INDEX} names a file that is not one of the folder's",
                                 seen=show(name), allowed="names such as "
                                 "model-00001-of-00002.safetensors", hint=again)  # fmt: skip
        tensors.setdefault(name, set()).add(tensor)
    if len(tensors) > MAX_SHARDS:
        raise ModelFileError(f"{INDEX} names too many files", seen=f"{len(tensors):,}",
                             allowed=f"up to {MAX_SHARDS:,}", hint=again)  # fmt: skip
    paths = [folder / name for name in sorted(tensors)]
    gone = [p.name for p in paths if not p.is_file()]
    if gone:
        more = f" and {len(gone) - 5:,} more" if len(gone) > 5 else ""
        raise ModelFileError(f"The model is in {len(paths):,} parts and some are missing",
                             seen=f"missing in {folder}: {', '.join(gone[:5])}{more}",
                             allowed=f"all {len(paths):,}",
                             hint="download the missing files into the same folder")  # fmt: skip
    seen: set[str] = set()
    for path in paths:
        here = {t.name for t in read_header(path).tensors}
        absent, twice = tensors[path.name] - here, seen & here
        if absent or twice:
            some = show(min(absent or twice))
            what = "lacks a tensor" if absent else "repeats a tensor of another part"
            raise ModelFileError(f"{path.name} {what}: it is not the file of {INDEX}", seen=some,
                                 hint="download all the files of one model again")  # fmt: skip
        seen |= here
    return tuple(paths)


def _no_config(folder: Path, names: list[str]) -> ModelFileError:
    ggufs = [n for n in names if n.endswith(".gguf")]
    if ggufs:
        return ModelFileError("This folder holds GGUF files, and one must be named", seen=folder,
                              allowed="one GGUF file, or a folder with config.json",
                              hint=f"name the file, such as {folder / ggufs[0]}")  # fmt: skip
    if "adapter_config.json" in names:
        return ModelFileError("This folder holds only an adapter (LoRA) for a model", seen=folder,
                              allowed="a whole model",
                              hint="merge the adapter into its model (peft: "
                              "merge_and_unload)")  # fmt: skip
    if any(n.endswith((".safetensors", *_PICKLES)) for n in names):
        return ModelFileError("The model folder has no config.json", seen=folder, allowed=NEEDED,
                              hint="copy config.json from where the model came from")  # fmt: skip
    found = ", ".join(show(n) for n in names[:5]) or "nothing"
    return ModelFileError("This folder holds no model", seen=f"{folder}: {found}",
                          allowed=f"a folder with {NEEDED}",
                          hint="name the folder with config.json, or a .gguf file")  # fmt: skip


def _no_weights(folder: Path, names: list[str]) -> ModelFileError:
    pickles = [n for n in names if n.endswith(_PICKLES) and n != "training_args.bin"]
    others = [n for n in names if n.endswith(".safetensors")]
    if others:
        return ModelFileError(f"The weights are not in {_SINGLE}",
                              seen=f"{folder}: {', '.join(show(n) for n in others[:5])}",
                              allowed=f"{_SINGLE}, or parts with {INDEX}",
                              hint=f"download {INDEX} too, or rename the file if it is the whole "
                              "model in Hugging Face's layout")  # fmt: skip
    if pickles:
        return ModelFileError("The weights are a PyTorch pickle, which can run code when read",
                              seen=f"{folder}: {', '.join(show(n) for n in pickles[:5])}",
                              allowed="safetensors", hint=_TO_SAFETENSORS)  # fmt: skip
    ggufs = [n for n in names if n.endswith(".gguf")]
    hint = "download model.safetensors, or every part and its index, into this folder"
    hint = f"name the file, such as {folder / ggufs[0]}" if ggufs else hint
    return ModelFileError("The model folder has no weights", seen=folder,
                          allowed=f"{_SINGLE}, or parts with {INDEX}", hint=hint)  # fmt: skip
