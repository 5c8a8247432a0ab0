"""mlx-lm's server: nothing tells the KV type, nor any version but in answers to requests.

Read in the wheel of 0.32.2, server.py (do_GET), and run here on a CPU (2026-11-28): it has
/health and whatever begins with /v1/models, no other GET. A list of models has id, object and
created only, and comes for a path of one model too; where the machine has no folder of Hugging
Face's cache, the answer breaks off after the headers of a 200. Completions have mlx-lm's version
in their system_fingerprint; a reader sends none.
"""

from __future__ import annotations

from nybble.engines.readback.base import Http, Reader, Reading
from nybble.engines.readback.values import MODELS, mapping, mappings, text, told_lines

_HEALTH = "/health"
_NO_MODEL = f"{MODELS}/nybble/none"  # a model that nobody has
_FIELDS = {"id", "object", "created"}
# models/cache.py, models/base.py: requests that fail once the cache is quantized.
_TOLD = ("RotatingKVCache Quantization NYI", "Quantized SDPA does not support attention sinks")


class MlxReader(Reader):
    """`mlx_lm.server`."""

    engine = "mlx-lm"

    def recognise(self, http: Http) -> bool:
        """By the list, or the broken answer, that it gives for one unknown model."""
        if http.json(_HEALTH) != {"status": "ok"}:
            return False
        told = http.text(_NO_MODEL)
        if told is None:
            return False
        answer = mapping(http.json(_NO_MODEL))
        if not told:
            return http.text(MODELS) == ""
        models = mappings(answer.get("data"))
        return (
            answer.get("object") == "list"
            and isinstance(answer.get("data"), list)
            and all(set(model) == _FIELDS for model in models)
        )

    def read(self, http: Http, log: str | None) -> Reading:
        """The model's folder, where it was started with one, and failures from the log."""
        # A folder is listed for any path, downloaded models only for their own.
        models = mappings(mapping(http.json(_NO_MODEL)).get("data"))
        return Reading(
            engine=self.engine,
            model=text(models[0].get("id")) if len(models) == 1 else None,
            sources=(MODELS,),
            notes=told_lines(log or "", _TOLD),
        )
