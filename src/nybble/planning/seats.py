"""The cards a plan is for: one kind of card, how many, and what each of them lends."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nybble.errors import NybbleError
from nybble.planning.cards import Card, card, change
from nybble.planning.memory.cards import GIB
from nybble.planning.request import RESERVE_GIB, RESERVE_SHARED_GIB, CardChoice
from nybble.planning.solve import Budget

_TIMES = re.compile(r"(\d+)\s*[x*]\s*(\S.*)")


@dataclass(frozen=True)
class Seats:
    """Equal cards that a model is split over.

    Attributes:
        card: each of them.
        budget: what they lend together.
    """

    card: Card
    budget: Budget


def cards_of(choice: CardChoice) -> Seats | None:
    """The cards of a choice; None where it names none.

    Raises:
        NybbleError: unknown, of different kinds, or without a byte to lend.
    """
    if choice.here:
        # Asked here: looking for a driver's tools takes a moment that a named card does not pay.
        from nybble.planning.machine import this_machine

        found = this_machine()
        kinds = {(c.name, c.memory_bytes) for c in found}
        if len(kinds) > 1 and choice.count is None:
            raise NybbleError(
                "this machine has cards of several kinds, and a plan is for equal ones",
                seen=", ".join(c.name for c in found), allowed="one kind of card",
                hint=f"--gpu {found[0].name}",
            )  # fmt: skip
        chosen, count = found[0], choice.count or len(found)
    elif choice.name is not None:
        count, chosen = named(choice.name)
        count = choice.count or count
    else:
        return None
    chosen = change(chosen, memory_gib=choice.memory_gib, bandwidth_gbs=choice.bandwidth_gbs,
                    fp16_tflops=choice.tflops)  # fmt: skip
    return seats(chosen, count, choice.reserve_gib)


def named(text: str) -> tuple[int, Card]:
    """`2xrtx-3090` as (2, its card).

    Raises:
        NybbleError: unknown card, or 0 of them.
    """
    match = _TIMES.fullmatch(text.strip())
    count, name = (int(match[1]), match[2]) if match else (1, text)
    if not 1 <= count <= 1024:
        raise NybbleError("the number of cards must be a whole number above 0", seen=text,
                          allowed="1 to 1,024", hint="--gpu 2xrtx-3090")  # fmt: skip
    return count, card(name)


def seats(chosen: Card, count: int, reserve_gib: float | None = None) -> Seats:
    """Equal cards, with what is left free of each.

    Raises:
        NybbleError: nothing would be left to use.
    """
    default = RESERVE_SHARED_GIB if chosen.unified else RESERVE_GIB
    reserve = round((default if reserve_gib is None else reserve_gib) * GIB)
    if reserve >= chosen.memory_bytes:
        raise NybbleError(
            "nothing of the card's memory would be left",
            seen=f"{reserve / GIB:.2g} GiB left free of {chosen.memory_gib:.2g} GiB",
            allowed=f"less than {chosen.memory_gib:.4g} GiB", hint="--reserve 0",
        )  # fmt: skip
    lent = Budget(chosen.memory_bytes, count, reserve, chosen.vendor, chosen.unified)
    return Seats(chosen, lent)
