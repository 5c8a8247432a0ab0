"""The child that asks `nybble.Cache`: `python -m nybble.scoring.tasks.torch_worker`.

Same requests as tasks/worker.py. Settings are asked one after the other, each with all threads.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from nybble.engines.transformers.packages import transformers

transformers()  # shuts the network before anything of it is imported

import torch  # noqa: E402

from nybble.engines.child import Frame  # noqa: E402
from nybble.engines.transformers.calibration_file import load as load_calibration  # noqa: E402
from nybble.engines.transformers.load import load  # noqa: E402
from nybble.engines.transformers.tokenizer import tokenizer  # noqa: E402
from nybble.engines.worker import BaseWorker, serve  # noqa: E402
from nybble.formats import KVSetting, parse  # noqa: E402
from nybble.formats.calibration import Calibration  # noqa: E402
from nybble.formats.codec import Layer  # noqa: E402
from nybble.models.checkpoint import resolve  # noqa: E402
from nybble.models.config_geometry import geometry_of_config  # noqa: E402
from nybble.runtime.attention import attach  # noqa: E402
from nybble.runtime.cache import Cache  # noqa: E402
from nybble.scoring.tasks.asking import Answered, Writing, ask  # noqa: E402
from nybble.scoring.tasks.forks import Forks  # noqa: E402
from nybble.scoring.tasks.frames import Asked, unpack  # noqa: E402
from nybble.scoring.tasks.making import make  # noqa: E402
from nybble.scoring.torch_worker import pick_device  # noqa: E402


class TorchTaskWorker(BaseWorker):
    """State of the child: a model, and what is needed to write its answers."""

    def __init__(self, out: IO[bytes]) -> None:
        super().__init__(out)
        self._model: Any = None
        self._calibration: Calibration | None = None
        self._writing: Writing | None = None
        self._settings: list[KVSetting] = []

    def do_make(self, request: Frame) -> Frame:
        """Items of one task at one length, with the tokenizer of the folder named."""
        return make(tokenizer(resolve(request.header["path"])), request.header, request.payload)

    def do_open(self, request: Frame) -> Frame:
        """Load the model; a folder's tokenizer too."""
        h = request.header
        torch.set_num_threads(h["threads"])
        device = pick_device(h["device"])
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self.event(step="load", path=h["path"])
        checkpoint = resolve(h["path"])
        self._model = load(
            checkpoint, Path(h["cache"]), dtype, device, "sdpa", lambda **f: self.event(**f)
        )
        attach(self._model)
        if h["calibration"]:
            self._calibration = _calibration(self._model, Path(h["calibration"]), h["fingerprint"])
        if checkpoint.kind == "folder":
            words = tokenizer(checkpoint)
            ends = {*_ends(self._model), words.vocabulary.eos} - {-1}
            self._writing = Writing(words.decode, frozenset(ends))
        info = {
            "transformers": transformers().__version__,
            "torch": torch.__version__,
            "device": device,
            "weights": "f32" if device == "cpu" else "bf16",
            "features": platform.machine() if device == "cpu" else torch.cuda.get_device_name(),
        }
        return Frame({"info": info})

    def do_pieces(self, request: Frame) -> Frame:
        """Take a GGUF's token pieces (the payload) and the ids that end an answer."""
        pieces, at = [], 0
        for length in request.header["lengths"]:
            pieces.append(request.payload[at : at + length])
            at += length

        def text(ids: Sequence[int]) -> str:
            return b"".join(pieces[i] for i in ids).decode("utf-8", "replace")

        self._writing = Writing(text, frozenset([*request.header["ends"], *_ends(self._model)]))
        return Frame({})

    def do_lanes(self, request: Frame) -> Frame:
        """Take the settings; each reads one token, so that what does not fit is refused here."""
        self._settings = []
        for i, (_, text) in enumerate(request.header["lanes"]):
            self.event(step="context", lane=i)
            self._settings.append(parse(text))
            for _ in self._tree(i).prompt([0]):
                pass
        return Frame({})

    def _tree(self, lane: int) -> Forks:
        setting = self._settings[lane]
        calibration = self._calibration if setting.calibrated else None
        return Forks(
            self._model, lambda: Cache(self._model, setting, calibration=calibration)
        )  # fmt: skip

    def _ask(self, lane: int, asked: Asked) -> list[Answered]:
        assert self._writing is not None

        def done(tokens: int) -> None:
            self.event(step="decode", lane=lane, done=tokens)

        done(0)
        return ask(self._tree(lane), asked, self._writing, done)

    def do_ask(self, request: Frame) -> Frame:
        """Ask one item (the payload) in the lanes named."""
        asked = unpack(request.header["lengths"], request.payload)
        found = [self._ask(lane, asked) for lane in request.header["lanes"]]
        return Frame({"answered": [[asdict(a) for a in lane] for lane in found]})


def _ends(model: Any) -> list[int]:
    """Ids that end an answer, as the model's generation config says."""
    said = getattr(model.generation_config, "eos_token_id", None)
    return [int(i) for i in (said if isinstance(said, list) else [said]) if i is not None]


def _calibration(model: Any, path: Path, fingerprint: str) -> Calibration:
    config = model.config.get_text_config(decoder=True)
    layers = geometry_of_config(config.to_dict(), "").layers
    return load_calibration(path, fingerprint, [
        Layer(i, len(layers), layer.kv_heads, layer.k_dim, layer.v_dim)
        for i, layer in enumerate(layers) if layer.kind in ("global", "sliding")
    ])  # fmt: skip


if __name__ == "__main__":
    serve(TorchTaskWorker)
