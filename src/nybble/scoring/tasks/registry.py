"""All tasks by name, in the order of tables: a new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from nybble.scoring.tasks.base import Task
from nybble.scoring.tasks.common_words import CommonWords
from nybble.scoring.tasks.copying import Copying
from nybble.scoring.tasks.facts import Facts
from nybble.scoring.tasks.multi_key import MultiKey
from nybble.scoring.tasks.multi_value import MultiValue
from nybble.scoring.tasks.needle import Needle
from nybble.scoring.tasks.tools import Tools
from nybble.scoring.tasks.tracking import Tracking

_ALL: tuple[Task, ...] = (
    Needle(),
    MultiKey(),
    MultiValue(),
    Tracking(),
    CommonWords(),
    Facts(),
    Copying(),
    Tools(),
)
TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in _ALL})
