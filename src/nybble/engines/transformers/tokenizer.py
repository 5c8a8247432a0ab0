"""Token ids of a model folder, from its tokenizer.json alone.

The `tokenizers` library reads that file and nothing else: no code of the folder runs, and no
class of transformers rebuilds the tokenizer in its own way. A GGUF's ids come from llama.cpp.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nybble.engines.transformers.load import read_config
from nybble.engines.transformers.packages import reason
from nybble.engines.vocabulary import Vocabulary
from nybble.errors import EngineError
from nybble.models.checkpoint import Checkpoint
from nybble.models.open_file import read_object

_AGAIN = "download tokenizer.json and tokenizer_config.json again, from where the model came from"


def tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of a folder.

    Raises:
        MissingExtraError: transformers is not installed.
        EngineError: tokenizer.json is damaged, or transformers does not know the model.
    """
    if checkpoint.kind != "folder":
        raise EngineError(
            "the token ids of a GGUF come from llama.cpp",
            seen=checkpoint.path,
            allowed="a folder with tokenizer.json",
            hint="read them with the llama.cpp engine's Model",
        )
    return Tokenizer(checkpoint.path, read_config(checkpoint, checkpoint.path).get_text_config())


class Tokenizer:
    """Text to token ids, as engines.llamacpp.model.Model offers it.

    Args:
        folder: a model folder with tokenizer.json.
        config: the config of its text part, of transformers.

    Attributes:
        vocabulary: `n_tokens` is the width of the model's logits, which may be more than the
            tokenizer has tokens; `eos_text` is what a chat template writes for it.
        context_length: tokens the model was trained for.
    """

    def __init__(self, folder: Path, config: Any) -> None:
        library = importlib.import_module("tokenizers")
        path = folder / "tokenizer.json"
        try:
            self._tokenizer: Any = library.Tokenizer.from_file(str(path))
            # Either may be left in the file from training, and would cut or pad every text.
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
        except Exception as e:  # the library has no error class of its own
            raise EngineError("tokenizer.json cannot be read", seen=f"{path}: {reason(e)}",
                              hint=_AGAIN) from e  # fmt: skip
        settings_path = folder / "tokenizer_config.json"
        settings = read_object(settings_path) if settings_path.is_file() else {}
        bos, bos_text = self._special("bos", settings, config)
        eos, eos_text = self._special("eos", settings, config)
        self.context_length = int(getattr(config, "max_position_embeddings", 0) or 0)
        self.vocabulary = Vocabulary(
            n_tokens=int(config.vocab_size),
            bos=bos,
            eos=eos,
            add_bos=bos >= 0 and self._adds(bos, settings),
            bos_text=bos_text,
            eos_text=eos_text,
        )

    def _special(self, kind: str, settings: dict[str, Any], config: Any) -> tuple[int, str]:
        """Id and text of a special token: tokenizer_config.json's word, else config.json's."""
        key = f"{kind}_token"
        if key in settings:
            text = settings[key]
            text = text.get("content") if isinstance(text, dict) else text
            token = self._tokenizer.token_to_id(text) if isinstance(text, str) else None
        else:
            token = getattr(config, f"{key}_id", None)
            token = token[0] if isinstance(token, list) and token else token
        if type(token) is not int or not 0 <= token < 1 << 31:
            return -1, ""
        return token, self._tokenizer.id_to_token(token) or ""

    def _adds(self, bos: int, settings: dict[str, Any]) -> bool:
        # As transformers: the setting where there is one, else what tokenizer.json itself adds.
        said = settings.get("add_bos_token")
        if isinstance(said, bool):
            return said
        ids: list[int] = self._tokenizer.encode("", add_special_tokens=True).ids
        return ids[:1] == [bos]

    def tokenize(self, text: str, *, special: bool) -> npt.NDArray[np.int32]:
        """Token ids of `text`, without BOS.

        Args:
            text: any text.
            special: read control tokens written in the text (chat templates) as such; without it
                they are plain text, as in llama.cpp. Added tokens that are not control tokens are
                found either way.

        Raises:
            EngineError: the text holds a token the model has no logit for.
        """
        self._tokenizer.encode_special_tokens = not special  # True: encode them as plain text
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as e:
            raise EngineError("tokenizer.json cannot encode this text", seen=reason(e)) from e
        out: npt.NDArray[np.int32] = np.array(ids, dtype=np.int32)
        if out.size and int(out.max()) >= self.vocabulary.n_tokens:
            raise EngineError(
                "the text holds a token that the model does not have",
                seen=f"{self._tokenizer.id_to_token(int(out.max()))!r}, id {int(out.max()):,}",
                allowed=f"ids up to {self.vocabulary.n_tokens - 1:,}",
                hint="remove the token from the text, or take tokenizer.json and config.json "
                "from one place",
            )
        return out

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without control tokens; a part of a character becomes U+FFFD."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text
