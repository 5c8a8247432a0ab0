"""nybble: 4-bit and 8-bit KV caches that can be trusted.

The library never prints, exits or reads argv; the command line is nybble.cli.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nybble.environment import VERSION as __version__

if TYPE_CHECKING:
    from nybble.errors import EngineError, ModelFileError, NybbleError
    from nybble.formats.setting import KVSetting
    from nybble.formats.setting import parse as parse_setting
    from nybble.hardening.harden import HardenRequest, harden
    from nybble.results.records import Measurement
    from nybble.scoring.calibrate import Calibrated, calibrate
    from nybble.scoring.measure import Result, measure, plan_cells
    from nybble.scoring.request import MeasureRequest

__all__ = [
    "Calibrated",
    "EngineError",
    "HardenRequest",
    "KVSetting",
    "MeasureRequest",
    "Measurement",
    "ModelFileError",
    "NybbleError",
    "Result",
    "__version__",
    "calibrate",
    "harden",
    "measure",
    "parse_setting",
    "plan_cells",
]

# Imported when first asked for: child processes and short commands need little of it.
_PLACES = {
    "Calibrated": "scoring.calibrate",
    "EngineError": "errors",
    "HardenRequest": "hardening.harden",
    "KVSetting": "formats.setting",
    "MeasureRequest": "scoring.request",
    "Measurement": "results.records",
    "ModelFileError": "errors",
    "NybbleError": "errors",
    "Result": "scoring.measure",
    "calibrate": "scoring.calibrate",
    "harden": "hardening.harden",
    "measure": "scoring.measure",
    "parse_setting": "formats.setting",
    "plan_cells": "scoring.measure",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'nybble' has no attribute {name!r}")
    module = importlib.import_module(f"nybble.{_PLACES[name]}")
    value = getattr(module, "parse" if name == "parse_setting" else name)
    globals()[name] = value
    return value
