"""lm-evaluation-harness's own command line, with the model `nybble` registered first.

Releases of lm-eval up to 0.4.13 know the models of their own folder only, so plain `lm_eval`
cannot find ours. Later ones read the entry point `lm_eval.models`; then this is not needed.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec

from nybble.engines.transformers.packages import PACKAGES
from nybble.errors import MissingExtraError, NybbleError

INSTALL = 'pip install -c constraints.txt -e ".[lm-eval]"'
TARGET = "nybble.engines.transformers.lm_eval_model:NybbleLM"


def register() -> None:
    """Make `nybble` known to lm-eval in this process; its code is loaded when it is asked for.

    Raises:
        MissingExtraError: lm-eval or what it runs models with is not installed.
    """
    absent = [name for name in (*PACKAGES, "accelerate", "lm_eval") if find_spec(name) is None]
    if absent:
        raise MissingExtraError(
            "lm-evaluation-harness is not installed",
            seen=f"missing: {', '.join(absent)}",
            hint=INSTALL,
        )
    importlib.import_module("lm_eval.models")  # an empty registry is filled once only
    registry = importlib.import_module("lm_eval.api.registry").model_registry
    if "nybble" not in registry:
        registry.register("nybble", target=TARGET)


def main() -> int:
    """Run lm-eval with the arguments of this process; the exit code."""
    try:
        register()
        importlib.import_module("lm_eval.__main__").cli_evaluate()
    except NybbleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
