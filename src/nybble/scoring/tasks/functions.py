"""Invented functions for the tool task: every part of them could as well be called otherwise.

For each name there are four, one of which is drawn for a context; only its schema tells which.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LEVELS = ("lowest", "middle", "highest")


@dataclass(frozen=True)
class Spec:
    """A function of two arguments, of which the second is a choice of three levels.

    Attributes:
        purpose: what it does, in words; unlike that of any other.
        names: four names of the function.
        object: what the first argument is, in words.
        object_keys: four names of it.
        integer: whether it is a number; else a person's name.
        scale: what the second argument is, in words.
        scale_keys: four names of it.
        levels: from lowest to highest, four words each.
    """

    purpose: str
    names: tuple[str, ...]
    object: str
    object_keys: tuple[str, ...]
    integer: bool
    scale: str
    scale_keys: tuple[str, ...]
    levels: tuple[tuple[str, ...], ...]


def _spec(purpose: str, names: str, first: str, keys: str, scale: str, scale_keys: str,
          *levels: str) -> Spec:  # fmt: skip
    return Spec(
        purpose,
        tuple(names.split()),
        first,
        tuple(keys.split()),
        first.endswith("number"),
        scale,
        tuple(scale_keys.split()),
        tuple(tuple(level.split()) for level in levels),
    )


SPECS = (
    _spec("Start a pump", "start_pump pump_start run_pump pump_on",
          "hall number", "hall hall_no hall_id building", "speed", "speed rate pace velocity",
          "slow low gentle calm", "medium normal steady even", "fast high quick full"),
    _spec("Set an alarm", "set_alarm alarm_set add_alarm new_alarm",
          "floor number", "floor floor_no storey deck", "loudness", "volume loudness sound noise",
          "quiet soft low faint", "medium normal moderate usual", "loud high strong maximum"),
    _spec("Switch a lamp", "switch_lamp lamp_switch set_light light_on",
          "lamp number", "lamp lamp_no lamp_id light", "brightness", "brightness shine glow power",
          "dim dark low night", "half medium evening mid", "bright high day full"),
    _spec("Buy a ticket", "buy_ticket ticket_buy book_ticket get_ticket",
          "passenger", "passenger traveller name person", "comfort", "class comfort seat category",
          "basic cheap third economy", "second standard regular normal", "first best luxury top"),
    _spec("Send a parcel", "send_parcel parcel_send ship_parcel mail_out",
          "receiver", "to receiver recipient customer", "urgency", "urgency priority service haste",
          "slow low relaxed saver", "normal standard usual regular", "urgent express fast rush"),
    _spec("Heat an oven", "heat_oven oven_heat warm_oven set_oven",
          "oven number", "oven oven_no oven_id stove", "heat", "heat temperature warmth setting",
          "warm low mild cool", "medium normal moderate middle", "hot high strong maximum"),
    _spec("Reserve a room", "reserve_room room_reserve book_room take_room",
          "guest", "guest visitor client host", "size", "size space area format",
          "small tiny little compact", "medium middle normal average", "large big huge wide"),
    _spec("Write a report", "write_report report_write make_report new_report",
          "reader", "reader audience addressee for_whom", "length", "length extent detail scope",
          "short brief concise tiny", "medium normal standard usual", "long full detailed whole"),
    _spec("Water a field", "water_field field_water irrigate sprinkle",
          "field number", "field field_no plot parcel_no", "amount", "amount quantity dose flow",
          "little low scarce small", "medium normal moderate fair", "much high plenty large"),
    _spec("Turn a fan", "turn_fan fan_turn spin_fan fan_on",
          "fan number", "fan fan_no fan_id device", "strength", "strength force power intensity",
          "weak low light gentle", "medium normal moderate steady", "strong high heavy full"),
)  # fmt: skip


@dataclass(frozen=True)
class Function:
    """A function as a context has it: one of four names for each part."""

    spec: Spec
    name: str
    object_key: str
    scale_key: str
    levels: tuple[str, ...]

    def schema(self) -> dict[str, Any]:
        """The function as JSON Schema, in the form that chat APIs give to models."""
        kind = "integer" if self.spec.integer else "string"
        low, middle, high = self.levels
        levels = f"{low} is the lowest, {middle} the middle, {high} the highest"
        return {
            "name": self.name,
            "description": f"{self.spec.purpose}.",
            "parameters": {
                "type": "object",
                "properties": {
                    self.object_key: {"type": kind, "description": self.spec.object},
                    self.scale_key: {
                        "enum": list(self.levels),
                        "description": f"{self.spec.scale}: {levels}",
                    },
                },
                "required": [self.object_key, self.scale_key],
            },
        }


def draw_function(rng: random.Random, spec: Spec) -> Function:
    """A function with names drawn evenly."""
    return Function(
        spec,
        rng.choice(spec.names),
        rng.choice(spec.object_keys),
        rng.choice(spec.scale_keys),
        tuple(map(rng.choice, spec.levels)),
    )


def problems(call: object, schemas: Sequence[Mapping[str, Any]]) -> list[str]:
    """What about a call does not agree with the schemas; empty for a valid one.

    Knows what `Function.schema` writes: type integer or string, enum, required; other keys are
    not allowed. As in JSON Schema, 7.0 is an integer and true is not.
    """
    if not isinstance(call, dict) or set(call) != {"name", "arguments"}:
        return ["not an object of name and arguments"]
    parameters = next((s["parameters"] for s in schemas if s["name"] == call["name"]), None)
    if parameters is None:
        return [f"no function {call['name']!r}"]
    given, known = call["arguments"], parameters["properties"]
    if not isinstance(given, dict):
        return ["arguments are not an object"]
    found = [f"{key} is missing" for key in parameters["required"] if key not in given]
    found += [f"unknown argument {key!r}" for key in given if key not in known]
    for key in given.keys() & known.keys():
        if not _fits(given[key], known[key]):
            found.append(f"{key} cannot be {given[key]!r}")
    return found


def _fits(value: object, rule: Mapping[str, Any]) -> bool:
    if "enum" in rule:
        return isinstance(value, str) and value in rule["enum"]
    if rule["type"] == "integer":
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return whole and not isinstance(value, bool)
    return isinstance(value, str)
