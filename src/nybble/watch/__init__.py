"""What changed in the engines since their data was read: releases, notes, a patch."""

from nybble.watch.drift import look
from nybble.watch.feeds import Addresses, Limits
from nybble.watch.records import EngineDrift, Watch

__all__ = ["Addresses", "EngineDrift", "Limits", "Watch", "look"]
