"""torch, imported when first used: listing types and planning must work without it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nybble.errors import MissingExtraError

if TYPE_CHECKING:
    import torch as torch
else:

    class _Torch:
        """Stands for the module until an attribute is asked for."""

        def __getattr__(self, name: str) -> Any:
            try:
                import torch as module
            except ImportError as error:
                raise MissingExtraError(
                    "this needs torch, which is not installed",
                    hint='pip install -c constraints.txt -e ".[transformers]"',
                ) from error
            value = getattr(module, name)
            setattr(self, name, value)
            return value

    torch = _Torch()
