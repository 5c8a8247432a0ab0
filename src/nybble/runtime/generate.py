"""One text in one packed cache: read a prompt, stream an answer, say what both cost.

A `Session` is a sequence that grows; a `Runtime` is a model and a KV setting, and makes sessions.
The loop is our own rather than `model.generate`, since a chat goes on in the cache it has, a
prompt's progress is told, and an answer can be ended between two tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nybble.errors import NybbleError
from nybble.formats.setting import KVSetting
from nybble.runtime.attention import attach
from nybble.runtime.cache import Cache
from nybble.runtime.generate_report import Finish, Report
from nybble.runtime.prefix import tokens_of
from nybble.runtime.sampling import Sampler, Sampling

if TYPE_CHECKING:
    from nybble.formats.calibration import Calibration

CHUNK = 512  # prompt tokens of one pass: what a pass keeps grows with it, its speed hardly


def never() -> bool:
    """Never asks to stop."""
    return False


@dataclass(frozen=True)
class Limits:
    """Where an answer ends.

    Attributes:
        new_tokens: at most so many; None for what the context leaves.
        ends: ids that end it.
        stopped: asked between tokens and between parts of the prompt; true ends the answer.
    """

    new_tokens: int | None = None
    ends: frozenset[int] = frozenset()
    stopped: Callable[[], bool] = never


@dataclass
class Session:
    """One sequence and its cache; used by one thread at a time.

    Attributes:
        runtime: whose it is.
        cache: the packed cache.
        tokens: ids whose keys and values are in the cache, in order.
        pending: the answer's last token where a limit cut it off: given, but not in the cache.
        report: of the last answer.
    """

    runtime: Runtime
    cache: Cache
    tokens: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    report: Report = field(default_factory=Report)

    def stream(
        self,
        ids: Sequence[int],
        limits: Limits,
        sampling: Sampling | None = None,
        on_prefill: Callable[[int, int], None] = lambda done, total: None,
    ) -> Generator[int, None, None]:
        """Read `ids` behind what is in the cache, and yield the answer token by token.

        The token that ends an answer is neither yielded nor kept.

        Args:
            ids: what comes next; at least one.
            limits: where the answer ends.
            sampling: how tokens are drawn; the likeliest by default.
            on_prefill: told the tokens of `ids` that are read, and how many they are.

        Raises:
            NybbleError: nothing to read, it leaves no room in the context, or the cache or the
                logits refuse what the model computes.
        """
        ids = [*self.pending, *ids]
        cached, room = len(self.tokens), self.runtime.context - len(self.tokens)
        self.runtime.check(ids, room)
        limit = room - len(ids)
        if limits.new_tokens is not None:
            limit = min(limit, limits.new_tokens)
        cut: Finish = "length" if limit == limits.new_tokens else "context"
        sampler = Sampler(sampling or Sampling(), self.runtime.device)
        self.report = self._now(Report(prompt_tokens=cached + len(ids), cached_tokens=cached))
        begun = time.perf_counter()
        self.cache.reserve(len(ids))
        logits = self._prefill(ids, limits.stopped, on_prefill)
        read = time.perf_counter()
        made = steps = 0
        finish: Finish = cut if logits is not None else "cancelled"
        try:
            while logits is not None and made < limit:
                token = sampler.draw(logits)
                if token in limits.ends:
                    finish = "stop"
                    break
                made += 1
                self.pending = [token]
                yield token
                if limits.stopped():
                    finish = "cancelled"
                    break
                if made < limit:
                    logits = self._forward([token])
                    steps += 1
        except GeneratorExit:
            finish = "cancelled"
            raise
        finally:
            now = time.perf_counter()
            self.report = self._now(replace(
                self.report, new_tokens=made, prefill_seconds=read - begun, finish=finish,
                decode_seconds=now - read, decode_steps=steps,
            ))  # fmt: skip

    def _prefill(
        self, ids: Sequence[int], stopped: Callable[[], bool], told: Callable[[int, int], None]
    ) -> torch.Tensor | None:
        logits = None
        for start in range(0, len(ids), CHUNK):
            if stopped():
                return None
            logits = self._forward(ids[start : start + CHUNK])
            told(min(start + CHUNK, len(ids)), len(ids))
        return logits

    @torch.inference_mode()
    def _forward(self, ids: Sequence[int]) -> torch.Tensor:
        logits = self.runtime.forward(ids, self.cache)
        self.tokens += ids
        self.pending = []
        return logits

    def rest(self, ids: Sequence[int]) -> list[int] | None:
        """What of `ids` is not in the cache; None where the cache holds another text."""
        held = len(self.tokens)
        known = len(ids) > held and list(ids[:held]) == self.tokens
        return list(ids[held:]) if known else None

    def _now(self, report: Report) -> Report:
        """The report with what the cache is by now."""
        return replace(
            report, bytes_stored=self.cache.bytes_stored(), bytes_16bit=bytes_16bit(self.cache),
            kernel=self.runtime.kernel, kv=str(self.runtime.kv),
        )  # fmt: skip

    def save(self, path: Path) -> None:
        """Write the cache and its tokens to a file.

        Raises:
            NybbleError: the file cannot be written, or the cache is empty.
        """
        if self.pending:
            self._forward(self.pending)
        if not self.tokens:
            raise NybbleError("there is nothing in the cache to save", seen=path)
        self.cache.save(path, tokens=torch.tensor([self.tokens]))


class Runtime:
    """A loaded model and the KV setting its caches are stored in.

    Args:
        model: a causal language model of transformers, in eval mode; its attention is replaced.
        kv: the KV setting.
        calibration: what a calibrated setting needs.
        latent: store values alone in layers whose keys follow from them.
        context: most tokens of a sequence; the model's own maximum without.

    Raises:
        NybbleError: a setting that this model or this runtime cannot store, or a context that is
            longer than the model was trained for.
    """

    def __init__(
        self,
        model: Any,
        kv: KVSetting,
        *,
        calibration: Calibration | None = None,
        latent: bool = False,
        context: int | None = None,
    ) -> None:
        text = model.config.get_text_config(decoder=True)
        longest = int(getattr(text, "max_position_embeddings", 0) or 0)
        if context is not None and (context < 2 or (longest and context > longest)):
            raise NybbleError(
                "the context is out of range", seen=f"{context:,} tokens",
                allowed=f"2 to {longest:,}, which the model was trained for" if longest
                else "2 or more", hint=f"--context {longest}" if longest else None,
            )  # fmt: skip
        self.model, self.kv, self.vocabulary = model, kv, int(text.vocab_size)
        self.context = context or longest or 1 << 20
        self.device: torch.device = next(model.parameters()).device
        self._calibration, self._latent = calibration, latent
        self._last = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}
        attach(model)
        # Layers are built by their first token: what does not fit this model is refused here, not
        # at a user's prompt, and kernels are compiled.
        tried = self.session()
        with torch.inference_mode():
            self.forward([0], tried.cache)
        self.kernel, self.kv = tried.cache.kernel, tried.cache.setting

    def session(self) -> Session:
        """A sequence with an empty cache."""
        cache = Cache(self.model, self.kv, calibration=self._calibration, latent=self._latent)
        return Session(self, cache)

    def load(self, path: Path) -> Session:
        """The sequence of a file that `Session.save` wrote.

        Raises:
            NybbleError: damaged, of another model or setting, or longer than the context.
        """
        cache = Cache.load(path, self.model, calibration=self._calibration)
        if str(cache.setting) != str(self.kv):
            raise NybbleError("the saved prefix has another KV setting", seen=str(cache.setting),
                              allowed=str(self.kv), hint=f"--kv {cache.setting}")  # fmt: skip
        held = tokens_of(path)
        tokens = held[0].tolist() if held is not None and len(held) == 1 else []
        if len(tokens) != cache.get_seq_length():
            raise NybbleError("the prefix file does not hold one sequence and its tokens",
                              seen=path, hint="nybble generate --save-prefix FILE")  # fmt: skip
        if len(tokens) >= self.context:
            raise NybbleError(
                "the saved prefix fills the context", seen=f"{len(tokens):,} tokens",
                allowed=f"under {self.context:,}", hint="a larger --context",
            )  # fmt: skip
        return Session(self, cache, tokens)

    def check(self, ids: Sequence[int], room: int | None = None) -> None:
        """Refuse a prompt that is empty, of another vocabulary, or leaves no room for an answer.

        Args:
            ids: the tokens to read.
            room: tokens left in the context; the whole of it by default.

        Raises:
            NybbleError: says what is allowed.
        """
        room = self.context if room is None else room
        if not len(ids):
            raise NybbleError("the prompt is empty", hint='--prompt "Once upon a time"')
        if not 0 <= min(ids) <= max(ids) < self.vocabulary:
            raise NybbleError("the prompt holds a token that the model does not have",
                              seen=f"{min(ids):,} to {max(ids):,}",
                              allowed=f"ids up to {self.vocabulary - 1:,}")  # fmt: skip
        if len(ids) >= room:
            used = self.context - room
            raise NybbleError(
                "the prompt does not fit the context",
                seen=f"{len(ids):,} tokens" + (f" behind {used:,} in the cache" if used else ""),
                allowed=f"under {room:,} of a context of {self.context:,}",
                hint="a shorter prompt or a larger --context",
            )

    def forward(self, ids: Sequence[int], cache: Cache) -> torch.Tensor:
        """Logits [vocabulary] behind the last of `ids`, which are now in the cache.

        Raises:
            NybbleError: memory ran out, or the cache refuses the keys or values.
        """
        given = torch.tensor([list(ids)], dtype=torch.long, device=self.device)
        try:
            out = self.model(input_ids=given, past_key_values=cache, use_cache=True, **self._last)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise NybbleError(
                f"the memory of {self.device} is full",
                seen=f"{cache.get_seq_length():,} tokens in the cache and {len(ids):,} more",
                hint="a smaller --context, a smaller model, or a KV setting of fewer bits",
            ) from error
        logits: torch.Tensor = out.logits[0, -1]
        return logits


def bytes_16bit(cache: Cache) -> int:
    """Bytes that the tokens of a cache take at 16 bits: K and V apart, windows once."""
    total = 0
    for layer in cache.packed:
        if layer.is_initialized:
            heads, k_dim, v_dim = layer.shape
            tokens = min(layer.length, layer.plan.window or layer.length)
            total += 2 * layer.batch_size * heads * (k_dim + v_dim) * tokens
    return total
