"""The fields of a config.json's text part, resolved by the defaults of transformers' own classes.

The facts come from config_defaults.json, which bench/config_defaults.py writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nybble.errors import ModelFileError, nearest
from nybble.models.file_kinds import show

MAX_LAYERS = 512  # as for a GGUF
# Larger ones are no sizes of a model: real ones reach 2^18, contexts 10^7, vocabularies 3 * 10^5.
MOST = MappingProxyType({
    "num_hidden_layers": MAX_LAYERS, "max_position_embeddings": (1 << 31) - 1,
    "vocab_size": 1 << 24, "vocab_size_per_layer_input": 1 << 24,
    "sliding_window": (1 << 31) - 1, "attention_chunk_size": (1 << 31) - 1,
})  # fmt: skip
_MOST = 1 << 20
_AGAIN = "take config.json from where the model came from"
# Names that model makers gave to a class of transformers. Source of kimi_k2: Kimi_K25Config, which
# reads it as deepseek_v3.
_ALSO = MappingProxyType({"kimi_k2": "deepseek_v3"})
# Wrappers whose class takes a text part's true as well. Source: their __post_init__.
_EITHER_TIES = ("llava", "qwen2_vl", "qwen2_5_vl")
_FLAT = ("qwen2_vl", "qwen2_5_vl")  # were saved without a text_config


@cache
def facts() -> Mapping[str, Any]:
    """What transformers' classes say of themselves: defaults, types and other names of fields."""
    path = Path(__file__).with_name("config_defaults.json")
    return MappingProxyType(json.loads(path.read_text(encoding="utf-8")))


def known() -> tuple[str, ...]:
    """Every model_type that can be read, those of multimodal models among them."""
    return tuple(sorted({*facts()["text"], *facts()["wrappers"], *_ALSO}))


class Fields:
    """The fields of one text model; a field is looked up under all the names its class takes.

    Attributes:
        kind: model_type of the text part.
        values: the text part as it stands in config.json.
        tied: whether the output matrix is the input embedding.
        wrapped: model_type of the multimodal model around it, if there is one.
        defaulted: fields read so far that the class's default decided, and that value.
    """

    def __init__(self, kind: str, values: Mapping[str, Any], wrapped: str | None = None) -> None:
        self.kind, self.values, self.wrapped = kind, values, wrapped
        self.facts = facts()["text"][kind]
        self.tied = False
        self.defaulted: dict[str, object] = {}

    def has(self, name: str) -> bool:
        """Whether the class declares a field."""
        return name in self.facts["fields"]

    def names(self, name: str) -> tuple[str, ...]:
        """Every key that sets a field: attributes of a class can have two names."""
        same: dict[str, str] = self.facts["same"]
        target = same.get(name, name)
        return (name, *sorted({target, *(k for k, v in same.items() if v == target)} - {name}))

    def raw(self, name: str) -> object:
        """The value in effect, unchecked.

        Raises:
            ModelFileError: two names of one field disagree.
        """
        given = [key for key in self.names(name) if key in self.values]
        if not given:
            default: object = self.facts["fields"].get(name, (None, None))[1]
            self.defaulted[name] = default
            return default
        value = self.values[given[0]]
        for key in given[1:]:
            if self.values[key] != value:
                raise self.wrong(f"{given[0]} and {key}", "one value: they are names of one field",
                                 (value, self.values[key]))  # fmt: skip
        return value

    def integer(self, name: str, least: int = 1) -> int:
        """A whole number of the model.

        Raises:
            ModelFileError: it is absent without a default, no whole number, or out of range.
        """
        value = self.optional(name, least)
        if value is None:
            raise self.wrong(name, "a whole number")
        return value

    def optional(self, name: str, least: int = 1) -> int | None:
        """A whole number, or None where the class takes null.

        Raises:
            ModelFileError: see `integer`.
        """
        value = self.raw(name)
        kind = self.facts["fields"].get(name, ("int?",))[0]
        if value is None and (kind.endswith("?") or kind == "any"):
            return None
        return self.check(name, value, least)

    def check(self, name: str, value: object, least: int = 1, label: str = "") -> int:
        """Return a value that is a whole number in the range of the field `name`."""
        most = MOST.get(name, _MOST)
        if type(value) is not int or not least <= value <= most:  # a bool is an int in Python
            raise self.wrong(label or name, f"a whole number from {least} to {most:,}", value)
        return value

    def flag(self, name: str) -> bool:
        """A yes or no; a field that the class does not have is no.

        Raises:
            ModelFileError: it is neither.
        """
        if not self.has(name):
            return False
        value = self.raw(name)
        if value is None and self.facts["fields"][name][0] == "bool?":
            return False
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false", value)
        return value

    def numbers(self, name: str) -> tuple[int, ...] | None:
        """A list of layer numbers or of flags of layers; None where it is absent or null.

        Raises:
            ModelFileError: it is no list, longer than any model, or holds something else.
        """
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) > MAX_LAYERS:
            raise self.wrong(name, f"a list of up to {MAX_LAYERS} numbers", value)
        for i, entry in enumerate(value):
            self.check(name, entry, 0, f"{name}[{i}]")
        return tuple(value)

    def wrong(
        self, field: str, allowed: str, *seen: object, length: int | None = None
    ) -> ModelFileError:
        """The error for a field: named, with its value, or the length of it, and what would do."""
        value = seen[0] if seen else self.raw(field)
        text = show(value) if isinstance(value, str) else show(value)[1:-1]
        text = text if length is None else f"of {length} entries"
        default = "" if field not in self.defaulted else f", by the default of {self.kind}"
        return ModelFileError(f"config.json: {field} of the {self.kind} model is wrong",
                              seen=f"{field} {text}{default}", allowed=allowed,
                              hint=_AGAIN)  # fmt: skip

    @property
    def note(self) -> str | None:
        """Which numbers config.json leaves to the class, for `--explain`."""
        shown = [f"{k} {v:,}" for k, v in self.defaulted.items() if type(v) is int and v]
        if not shown:
            return None
        version = facts()["transformers"]
        return f"by the defaults of transformers {version} for {self.kind}: {', '.join(shown)}"


def text_fields(config: Mapping[str, Any]) -> Fields:
    """Find the text part of a model and its class.

    Args:
        config: config.json, of a text model or of a multimodal one.

    Raises:
        ModelFileError: the model_type is absent or not known, the text part is no object, or the
            model does not predict the next token.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise ModelFileError("config.json does not say what model this is",
                             seen=f"model_type {show(kind)}", allowed='a name such as "llama"',
                             hint=_AGAIN)  # fmt: skip
    kind = _ALSO.get(kind, kind)
    wrapper = facts()["wrappers"].get(kind)
    if wrapper is None:
        fields = Fields(_text_kind(kind), config)
        known = fields.has("tie_word_embeddings")
        fields.tied = fields.flag("tie_word_embeddings") if known else _ties(fields, config)
    else:
        fields = _wrapped(kind, wrapper, config)
    if config.get("is_encoder_decoder") or _bidirectional(fields):
        raise ModelFileError("This model does not predict the next token of a text",
                             seen=f"{show(kind)}, an encoder", allowed="a causal language model",
                             hint="name a text generation model")  # fmt: skip
    return fields


def _bidirectional(fields: Fields) -> bool:
    """Whether all tokens see each other; "vision" is about the tokens of one image."""
    name = "use_bidirectional_attention"
    return fields.has(name) and fields.raw(name) not in (None, False, "vision")


def _text_kind(kind: object) -> str:
    """A text model_type of the table.

    Raises:
        ModelFileError: it is not there.
    """
    kind = _ALSO.get(kind, kind) if isinstance(kind, str) else kind
    if isinstance(kind, str) and kind in facts()["text"]:
        return kind
    near = nearest(str(kind)[:60], known())
    raise ModelFileError("No rule says which layers of this model keep what",
                         seen=f"model_type {show(kind)}", allowed=known(),
                         hint="plan with a GGUF of the model, whose header says it"
                         + (f"; or is it {near}?" if near else ""))  # fmt: skip


def _wrapped(kind: str, wrapper: Mapping[str, Any], config: Mapping[str, Any]) -> Fields:
    part = config.get("text_config")
    if part is not None and not isinstance(part, Mapping):
        raise ModelFileError(f"config.json: text_config of the {show(kind)} model is wrong",
                             seen=f"text_config {show(part)}", allowed="an object",
                             hint=_AGAIN)  # fmt: skip
    if part is None:
        part = config if kind in _FLAT else wrapper["without"]
        part = {k: v for k, v in part.items() if k != "model_type"}
    own = part.get("model_type", wrapper["text"]) if wrapper["any"] else wrapper["text"]
    fields = Fields(_text_kind(own), part, kind)
    # transformers looks at the outer value alone, but older configs have it only inside, where
    # their makers put it.
    inner = part.get("tie_word_embeddings") is not None
    default = _ties(fields, part) if inner else wrapper["tie_word_embeddings"]
    fields.tied = _ties(fields, config, default)
    if kind in _EITHER_TIES and _ties(fields, part):
        fields.tied = True
    return fields


def _ties(fields: Fields, values: Mapping[str, Any], default: bool = False) -> bool:
    """Whether values say that the output matrix is the input embedding."""
    name = "tie_word_embeddings"
    value = values.get(name)
    if value is not None and not isinstance(value, bool):
        raise fields.wrong(name, "true or false", value)
    return default if value is None else value
