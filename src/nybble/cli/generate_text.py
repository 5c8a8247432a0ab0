"""A model's tokenizer and chat template together, as generation asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nybble.engines.llamacpp.tokenizer import GGUFTokenizer
from nybble.engines.transformers.tokenizer import Tokenizer, tokenizer
from nybble.errors import NybbleError
from nybble.models.checkpoint import Checkpoint
from nybble.runtime.text import BytesDecoder, Decoder, IdsDecoder
from nybble.scoring.corpora.render import conversation

_ANSWER = "nybble3b9d1c70answer"  # stands for an answer, to see what a template puts behind one


class ModelText:
    """`runtime.text.Text` of a GGUF or a folder: ids as `nybble measure` has them.

    Args:
        checkpoint: the model.
        ends: ids that end an answer, as the loaded model says.
    """

    def __init__(self, checkpoint: Checkpoint, ends: Sequence[int] = ()) -> None:
        self._template = checkpoint.chat_template
        self._tokenizer: GGUFTokenizer | Tokenizer
        if checkpoint.kind == "gguf":
            self._tokenizer = GGUFTokenizer(checkpoint.path)
            self.ends = self._tokenizer.ends
        else:
            self._tokenizer = tokenizer(checkpoint)
            eos = self._tokenizer.vocabulary.eos
            self.ends = frozenset([*ends, *([eos] if eos >= 0 else [])])

    @property
    def has_template(self) -> bool:
        """Whether this is a model for conversations."""
        return bool(self._template)

    def prompt(self, text: str) -> list[int]:
        """See `Text.prompt`; BOS in front where the model wants it."""
        return self._with_bos(self.more(text))

    def more(self, text: str) -> list[int]:
        """Ids of a plain text that goes on."""
        return self._ids(text, special=False)

    def chat(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
    ) -> list[int]:
        """See `Text.chat`."""
        return self._with_bos(self._ids(self._rendered(messages, tools), special=True))

    def turn(self, content: str) -> list[int]:
        """Ids of the next turn of a conversation, the end of the answer before it included.

        The conversation itself is not rendered again, since its keys are in the cache.

        Raises:
            NybbleError: see `chat`.
        """
        turns = [("user", "-"), ("assistant", _ANSWER), ("user", content)]
        text = self._rendered([{"role": r, "content": c} for r, c in turns], None)
        head, mark, tail = text.rpartition(_ANSWER)
        if not mark or _ANSWER in head:
            raise NybbleError(
                "the chat template of the model does not show a conversation's turns",
                seen=text[:200], hint="one prompt at a time: --prompt TEXT",
            )  # fmt: skip
        return self._ids(tail, special=True)

    def decoder(self, before: Sequence[int]) -> Decoder:
        """See `Text.decoder`."""
        if isinstance(self._tokenizer, GGUFTokenizer):
            return BytesDecoder(self._tokenizer.pieces)
        return IdsDecoder(self._tokenizer.decode, before)

    def close(self) -> None:
        """End llama.cpp's child, where there is one."""
        if isinstance(self._tokenizer, GGUFTokenizer):
            self._tokenizer.close()

    def _rendered(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
        if not self._template:
            raise NybbleError("this model has no chat template, so it only continues text",
                              allowed="plain text")  # fmt: skip
        vocabulary = self._tokenizer.vocabulary
        return conversation(
            messages, self._template, bos=vocabulary.bos_text, eos=vocabulary.eos_text, tools=tools
        )

    def _ids(self, text: str, *, special: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise NybbleError("the text holds half a character (a lone surrogate)",
                              seen=f"at position {error.start:,}") from error  # fmt: skip
        ids: list[int] = self._tokenizer.tokenize(text, special=special).tolist()
        return ids

    def _with_bos(self, ids: list[int]) -> list[int]:
        vocabulary = self._tokenizer.vocabulary
        wanted = vocabulary.add_bos and ids[:1] != [vocabulary.bos]
        return [vocabulary.bos, *ids] if wanted else ids
