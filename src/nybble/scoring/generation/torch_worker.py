"""The child that generates with `nybble.Cache`: `python -m nybble.scoring.generation.torch_worker`.

Same requests as worker.py. Lanes answer one after the other, each with all threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from nybble.engines.transformers.packages import transformers

transformers()  # shuts the network before anything of it is imported

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
import torch  # noqa: E402

from nybble.engines.child import Frame  # noqa: E402
from nybble.engines.transformers.tokenizer import tokenizer  # noqa: E402
from nybble.engines.worker import serve  # noqa: E402
from nybble.formats import KVSetting, parse  # noqa: E402
from nybble.formats.calibration import Calibration  # noqa: E402
from nybble.models.checkpoint import resolve  # noqa: E402
from nybble.runtime.cache import Cache  # noqa: E402
from nybble.runtime.generate import CHUNK  # noqa: E402
from nybble.scoring.generation.greedy import answers  # noqa: E402
from nybble.scoring.generation.prompts import prompts  # noqa: E402
from nybble.scoring.lockstep import Comparison, block_rows, score_chunk  # noqa: E402
from nybble.scoring.tasks.torch_worker import TorchTaskWorker, _ends  # noqa: E402

Logits = npt.NDArray[np.float32]


class TorchLane:
    """A model of transformers over one `nybble.Cache`: a Lane of lockstep.py and greedy.py.

    Args:
        model: a loaded causal language model with `nybble.attach`.
        setting: of its cache.
        calibration: where the setting needs one.
    """

    def __init__(self, model: Any, setting: KVSetting, calibration: Calibration | None) -> None:
        self._model, self._setting, self._calibration = model, setting, calibration
        self._device: torch.device = next(model.parameters()).device
        self._keeps = bool(model._supports_logits_to_keep())
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self._cache = Cache(self._model, self._setting, calibration=self._calibration)

    def prefill(self, tokens: Sequence[int], first: int) -> Iterator[int]:
        """Read tokens, without their logits; yields tokens done."""
        for start in range(0, len(tokens), CHUNK):
            part = tokens[start : start + CHUNK]
            self._forward(part, 1)
            yield len(part)

    def last(self, tokens: Sequence[int], first: int) -> Logits:
        """Read tokens; logits [n_vocab] of the last one."""
        found: Logits = self._forward(tokens, 1)[-1]
        return found

    def score(self, tokens: Sequence[int], first: int) -> Logits:
        """Read tokens; their logits [len(tokens), n_vocab]."""
        return self._forward(tokens, len(tokens))

    @torch.inference_mode()
    def _forward(self, ids: Sequence[int], wanted: int) -> Logits:
        given = torch.tensor([list(ids)], dtype=torch.long, device=self._device)
        keep = {"logits_to_keep": wanted} if self._keeps else {}
        out = self._model(input_ids=given, past_key_values=self._cache, use_cache=True, **keep)
        found: Logits = out.logits[0, -wanted:].float().cpu().numpy()
        return found


class TorchGenerationWorker(TorchTaskWorker):
    """State of the child: a model and the settings of its lanes."""

    def do_prompts(self, request: Frame) -> Frame:
        """Prompts of one category, with the tokenizer of the folder named."""
        return prompts(tokenizer(resolve(request.header["path"])), request.header, self.event)

    def _lane(self, index: int) -> TorchLane:
        setting = self._settings[index]
        calibration = self._calibration if setting.calibrated else None
        return TorchLane(self._model, setting, calibration)

    def do_lanes(self, request: Frame) -> Frame:
        """Take the settings; each reads one token, so that what does not fit is refused here."""
        self._settings = []
        for i, (_, text) in enumerate(request.header["lanes"]):
            self.event(step="context", lane=i)
            self._settings.append(parse(text))
            self._lane(i).last([0], 0)
        return Frame({})

    def do_generate(self, request: Frame) -> Frame:
        """Answer one prompt (the payload) in the lanes named; the payload is their tokens."""
        h = request.header
        found = answers(
            [self._lane(i) for i in h["lanes"]],
            np.frombuffer(request.payload, dtype="<i4").tolist(),
            h["limit"],
            frozenset([*h["ends"], *_ends(self._model)]),
            1,
            lambda lane, done: self.event(step="decode", lane=h["lanes"][lane], done=done),
        )
        header = {"lengths": [len(a.tokens) for a in found], "ended": [a.ended for a in found]}
        return Frame(header, b"".join(np.array(a.tokens, dtype="<i4").tobytes() for a in found))

    def do_score(self, request: Frame) -> Frame:
        """Read one text in lockstep; the payload is ROW records, comparison by comparison."""
        h = request.header
        pairs = [Comparison(*pair) for pair in h["comparisons"]]
        used = sorted({i for c in pairs for i in (c.lane, c.reference)})
        place = {lane: i for i, lane in enumerate(used)}
        scored = score_chunk(
            [self._lane(i) for i in used],
            [Comparison(place[c.lane], place[c.reference]) for c in pairs],
            np.frombuffer(request.payload, dtype=np.int32),
            h["first"],
            block_rows(self._model.config.get_text_config().vocab_size, "prefill"),
            1,
            lambda lane, done: self.event(step="decode", lane=used[lane], done=done),
        )
        header = {"rows": [len(r) for r in scored.rows], **vars(scored.timing)}
        return Frame(header, b"".join(r.tobytes() for r in scored.rows))


if __name__ == "__main__":
    serve(TorchGenerationWorker)
