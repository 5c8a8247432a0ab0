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
    from nybble.planning.costs import CostRequest, cost
    from nybble.planning.plan import plan
    from nybble.planning.request import CardChoice, PlanRequest
    from nybble.results.plans import CostComparison, Plan
    from nybble.results.records import Measurement
    from nybble.runtime.attention import attach
    from nybble.runtime.cache import Cache
    from nybble.scoring.calibrate import Calibrated, calibrate
    from nybble.scoring.measure import Result, measure, plan_cells
    from nybble.scoring.request import MeasureRequest
    from nybble.serving.deploy import DeployRequest, deploy
    from nybble.serving.serve import ServeRequest, serve
    from nybble.serving.verify import VerifyRequest, verify

__all__ = [
    "Cache",
    "Calibrated",
    "CardChoice",
    "CostComparison",
    "CostRequest",
    "DeployRequest",
    "EngineError",
    "HardenRequest",
    "KVSetting",
    "MeasureRequest",
    "Measurement",
    "ModelFileError",
    "NybbleError",
    "Plan",
    "PlanRequest",
    "Result",
    "ServeRequest",
    "VerifyRequest",
    "__version__",
    "attach",
    "calibrate",
    "cost",
    "deploy",
    "harden",
    "measure",
    "parse_setting",
    "plan",
    "plan_cells",
    "serve",
    "verify",
]

# Imported when first asked for: child processes and short commands need little of it.
_PLACES = {
    "Cache": "runtime.cache",
    "Calibrated": "scoring.calibrate",
    "CardChoice": "planning.request",
    "CostComparison": "results.plans",
    "CostRequest": "planning.costs",
    "DeployRequest": "serving.deploy",
    "EngineError": "errors",
    "HardenRequest": "hardening.harden",
    "KVSetting": "formats.setting",
    "MeasureRequest": "scoring.request",
    "Measurement": "results.records",
    "ModelFileError": "errors",
    "NybbleError": "errors",
    "Plan": "results.plans",
    "PlanRequest": "planning.request",
    "Result": "scoring.measure",
    "ServeRequest": "serving.serve",
    "VerifyRequest": "serving.verify",
    "attach": "runtime.attention",
    "calibrate": "scoring.calibrate",
    "cost": "planning.costs",
    "deploy": "serving.deploy",
    "harden": "hardening.harden",
    "measure": "scoring.measure",
    "parse_setting": "formats.setting",
    "plan": "planning.plan",
    "plan_cells": "scoring.measure",
    "serve": "serving.serve",
    "verify": "serving.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'nybble' has no attribute {name!r}")
    module = importlib.import_module(f"nybble.{_PLACES[name]}")
    value = getattr(module, "parse" if name == "parse_setting" else name)
    globals()[name] = value
    return value
