"""nybble: 4-bit and 8-bit KV caches that can be trusted.

The library never prints, exits or reads argv; the command line is nybble.cli.
"""

from __future__ import annotations

from nybble.environment import VERSION as __version__
from nybble.errors import EngineError, ModelFileError, NybbleError
from nybble.formats import KVSetting
from nybble.formats import parse as parse_setting
from nybble.results.records import Measurement
from nybble.scoring.measure import Result, measure, plan_cells
from nybble.scoring.request import MeasureRequest

__all__ = [
    "EngineError",
    "KVSetting",
    "MeasureRequest",
    "Measurement",
    "ModelFileError",
    "NybbleError",
    "Result",
    "__version__",
    "measure",
    "parse_setting",
    "plan_cells",
]
