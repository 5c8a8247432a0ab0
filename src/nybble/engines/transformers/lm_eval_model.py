"""The model `nybble` of lm-evaluation-harness: its tasks over a quantized KV cache.

Every forward pass reads K and V through the codecs of one KV setting (attention.py), so the cache
is hot: a log-likelihood in one pass feels it as much as a generation does. Nothing is stored
packed: keys and values lie raw in transformers' cache and are read through the codecs each time.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from nybble.engines.transformers.attention import NAME, Lanes, reading
from nybble.engines.transformers.calibration_file import load as load_calibration
from nybble.engines.transformers.lm_eval import INSTALL
from nybble.engines.transformers.lm_eval_arguments import Arguments, network_shut_for_now, read
from nybble.engines.transformers.load import load
from nybble.engines.transformers.model import TorchModel
from nybble.engines.transformers.packages import reason
from nybble.environment import VERSION, cache_dir
from nybble.errors import CacheNotReadError, EngineError, MissingExtraError
from nybble.formats import check_head_size, kv_type
from nybble.formats.codec import Codec, SideStore, layer_stores

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    raise MissingExtraError(
        "lm-evaluation-harness is not installed", seen=error, hint=INSTALL
    ) from error

Stores = list[tuple[SideStore, SideStore]]


@register_model("nybble")
class NybbleLM(HFLM):  # type: ignore[misc]
    """A causal model whose K and V are read as a KV setting stores them.

    Args:
        pretrained: a model folder, the id of a hub model in the local cache, or a GGUF file.
        kv: the KV setting, such as q8_0/q4_0.
        calibration: file that `nybble calibrate` wrote, for settings that need one.
        tokenizer: folder or cached hub id; a GGUF needs it, else it is the model's own.
        device: as torch names it; the CPU where torch sees no GPU, as lm-eval does.
        dtype: float32, bfloat16 or float16; auto is float32 on a CPU and bfloat16 on a GPU.
        batch_size: as lm-eval reads it.
        max_batch_size: as lm-eval reads it.
        options: those of lm-eval's own Hugging Face model that mean the same here.

    Raises:
        NybbleError: an argument, the model or the KV setting does not fit.
    """

    def __init__(
        self,
        pretrained: str = "",
        kv: str = "f16/f16",
        calibration: str | None = None,
        tokenizer: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int = 64,
        **options: Any,
    ) -> None:
        given = read(pretrained, kv, calibration, tokenizer, device, dtype, options)
        self._given = given
        self.setting = given.setting
        with network_shut_for_now():
            model = load(given.checkpoint, cache_dir(), given.dtype, given.device, NAME)
            self._torch = TorchModel(model)
            self._fingerprint = given.checkpoint.fingerprint(cache_dir())
            self._prefill, self._decode = _stores(given, self._torch, self._fingerprint)
            with _no_warnings():  # HFLM warns of models that others have loaded
                super().__init__(
                    pretrained=model, backend="causal", tokenizer=str(given.tokenizer),
                    batch_size=batch_size, max_batch_size=max_batch_size, **options,
                )  # fmt: skip
        # An older generation_config.json may ask for a kind of cache; ours is given.
        model.generation_config.cache_implementation = None
        model.forward = self._hot(model.forward)

    def _create_tokenizer(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._create_tokenizer(*args, **kwargs)
        except Exception as e:  # whatever a stranger's files make of transformers' code
            raise EngineError(
                "transformers cannot read the tokenizer",
                seen=f"{self._given.tokenizer}: {reason(e)}",
                hint="download its files again, or name another with tokenizer=FOLDER",
            ) from e

    def _hot(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The model's forward pass, reading K and V through the setting in every row."""
        slots = {layer.index: i for i, layer in enumerate(self._torch.layers)}

        @functools.wraps(forward)  # generate() looks at the signature
        def call(*args: Any, **kwargs: Any) -> Any:
            ids = args[0] if args else kwargs["input_ids"]
            past = kwargs.get("past_key_values")
            begun = past is not None and past.get_seq_length() > 0
            stores = self._decode if begun and ids.shape[1] == 1 else self._prefill
            kwargs.setdefault("use_cache", False)  # HFLM scores without saying so
            lanes = Lanes([stores] * len(ids))
            with reading(lanes=lanes, slot=lambda module: slots[self._torch.owner(module)]):
                return forward(*args, **kwargs)

        return call

    # HFLM pads rows of log-likelihoods on the right, where a causal model never looks.

    def loglikelihood(self, requests: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        """As HFLM.

        Raises:
            CacheNotReadError: of some task not even the longest request reads a stored key.
        """
        self._require_read(requests, ("".join(r.args) for r in requests), self._prefill)
        return super().loglikelihood(requests, *args, **kwargs)

    def loglikelihood_rolling(self, requests: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        """As HFLM; raises as `loglikelihood`."""
        self._require_read(requests, (r.args[0] for r in requests), self._prefill)
        return super().loglikelihood_rolling(requests, *args, **kwargs)

    def generate_until(self, requests: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        """As HFLM; raises as `loglikelihood`, when it is known how long the texts became."""
        out = super().generate_until(requests, *args, **kwargs)
        texts = (r.args[0] + made for r, made in zip(requests, out, strict=True))
        self._require_read(requests, texts, self._decode)
        return out

    def _model_generate(
        self,
        context: torch.Tensor,
        max_length: int,
        stop: list[str],
        attention_mask: torch.Tensor | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """Generate for rows of one length at a time, without the padding on the left.

        Padding would move first tokens, windows and the bounds of chunks and groups.
        """
        rows, width = context.shape
        mask = torch.ones_like(context) if attention_mask is None else attention_mask
        lengths = mask.sum(1).clamp(min=1).tolist()
        made: dict[int, torch.Tensor] = {}
        for length in sorted(set(lengths)):
            some = [i for i in range(rows) if lengths[i] == length]
            prompt = context[some, width - length :]
            out = super()._model_generate(
                context=prompt, max_length=max_length - width + length, stop=stop,
                attention_mask=torch.ones_like(prompt), past_key_values=self._whole_cache(),
                **options,
            )  # fmt: skip
            made |= {i: row[length:] for i, row in zip(some, out, strict=True)}
        longest = max(map(len, made.values()))
        whole = context.new_full((rows, width + longest), self.tokenizer.pad_token_id)
        whole[:, :width] = context
        for i, row in made.items():
            whole[i, width : width + len(row)] = row
        return whole

    def _whole_cache(self) -> Any:
        """An empty cache that keeps every key.

        One that drops what a sliding window has passed would shift the positions of the rest,
        and with them first tokens, chunks and groups. The mask still hides what is too old.
        """
        caches = importlib.import_module("transformers.cache_utils")
        cache = caches.DynamicCache(config=self._model.config.get_text_config(decoder=True))
        for i, layer in enumerate(cache.layers):
            if type(layer) is caches.DynamicSlidingWindowLayer:
                cache.layers[i] = caches.DynamicLayer()
            elif getattr(layer, "is_sliding", False):
                raise EngineError(
                    "nybble cannot generate with this model's kind of cache",
                    seen=f"{type(layer).__name__} in layer {i}",
                    allowed="tasks that score log-likelihoods",
                )
        return cache

    def _require_read(self, requests: Sequence[Any], texts: Iterable[str], stores: Stores) -> None:
        """Refuse a task of which not even the longest text reads a stored key.

        Its scores would be those of an unquantized cache.
        """
        if not self.setting.quantized:
            return
        longest: dict[str, str] = {}
        for request, text in zip(requests, texts, strict=True):
            name = str(request.task_name)
            longest[name] = max(longest.get(name, ""), text, key=len)
        for name, text in longest.items():
            tokens = self.tok_encode(text)[: self.max_length]
            if tokens and not self._drifts(tokens, stores):
                raise CacheNotReadError(
                    "the quantized cache was not read: every key was still raw when it was used",
                    seen=f"{self.setting}, {len(tokens):,} tokens in the longest text of {name}",
                    allowed="texts longer than the window or chunk that this setting leaves raw",
                    hint="a task with longer texts, or a shorter chunk: "
                    f"kv={self.setting.k}/{self.setting.v}+chunk32",
                )

    def _drifts(self, tokens: Sequence[int], stores: Stores) -> bool:
        """Whether a text's hidden states differ from those of f16 read by the same rules.

        The same rules make both runs take the same path through attention, so states that are
        equal bit for bit mean that nothing quantized was read.
        """
        plain = [(_in_f16(k), _in_f16(v)) for k, v in stores]
        hot, cold = (self._torch.hidden(tokens, Lanes([s])) for s in (stores, plain))
        return not torch.equal(hot, cold)

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into its results; unlike HFLM's, it asks nothing of the hub."""
        return {
            "model_num_parameters": self._model.num_parameters(),
            "model_dtype": self._model.dtype,
            "model_revision": "",
            "model_sha": self._fingerprint,
            "model_device": str(self.device),
            "nybble_version": VERSION,
            "kv": str(self.setting),
            "kv_bits": self.setting.bits,
            "kv_cache": "simulated: read through the codecs, not stored packed",
            "kv_calibration": str(self._given.calibration or ""),
        }


def _stores(given: Arguments, model: TorchModel, fingerprint: str) -> tuple[Stores, Stores]:
    """Codecs of all layers while a prompt is read, and while tokens come one by one."""
    layers = model.layers
    check_head_size(given.setting, {y.k_dim for y in layers}, {y.v_dim for y in layers})
    found = None
    if given.calibration is not None:
        found = load_calibration(given.calibration, fingerprint, layers)
    prefill, decode = (
        [
            layer_stores(
                given.setting, layer, calibration=found, gguf=model.gguf_order,
                decode=one_by_one, device=model.device,
            )
            for layer in layers
        ]
        for one_by_one in (False, True)
    )  # fmt: skip
    return prefill, decode


def _in_f16(store: SideStore) -> SideStore:
    # Queries stay as the setting rounds them: only what is stored may make the difference.
    return SideStore(
        tuple(
            (head, Codec(kv_type("f16"), c.reads, c.rotation, order=c.order, query=c.query))
            for head, c in store.codecs
        )
    )


@contextmanager
def _no_warnings() -> Iterator[None]:
    logger = logging.getLogger("lm_eval.models.huggingface")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
