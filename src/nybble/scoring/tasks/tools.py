"""A call of a function whose schema was given at the start of a long context."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass, replace
from typing import Any

from nybble.scoring.tasks.base import Query, Room
from nybble.scoring.tasks.filler import sentences
from nybble.scoring.tasks.functions import LEVELS, SPECS, Function, draw_function, problems
from nybble.scoring.tasks.haystack import affordable, fill, most_tokens, where
from nybble.scoring.tasks.multi_value import people_names

_HEAD = "You can call these functions:"
_AFTER = "\n\nThis is the story so far.\n\n"
_FUNCTIONS = 6  # of which a context has the schemas
_PARTS = ("name", "key", "level")  # what the wrong options of a question have wrong


@dataclass(frozen=True)
class Tools:
    """The wrong options break the schema in one part, which has one of its other names.

    All four names are as likely to be the schema's, so that nothing but the schema tells.
    """

    name: str = "tools"
    title: str = "tool calls"
    source: str = "BFCL, https://gorilla.cs.berkeley.edu/leaderboard.html"

    def make(self, rng: random.Random, room: Room, n_queries: int) -> tuple[str, list[Query]]:
        """As `Task.make`; depths are close to 0, since tools are given at the start."""
        functions = [draw_function(rng, spec) for spec in rng.sample(SPECS, _FUNCTIONS)]
        lines = [json.dumps(function.schema()) for function in functions]
        n = affordable(room, _HEAD, [[line] for line in lines], 1)
        head = "\n".join([_HEAD, *lines[:n]]) + _AFTER
        schemas = [function.schema() for function in functions[:n]]
        asked = [(_PARTS[i % len(_PARTS)], functions[i % n]) for i in range(n_queries)]
        calls = [(*_call(rng, part, function), part, function) for part, function in asked]
        context = fill(room, head, [], sentences(random.Random(rng.getrandbits(64))))
        queries = []
        for text, called, part, function in calls:
            options = tuple(f" {json.dumps(call)}" for call in called)
            queries.append(
                Query(
                    text=text,
                    lead="The call in JSON:",
                    answers=(options[0].strip(),),
                    options=options,
                    depth=where(context, json.dumps(function.schema())),
                    most=most_tokens(room, options),
                    about={"functions": schemas, "call": called[0], "part": part},
                )
            )
        return context, queries

    def right(self, query: Query, text: str) -> bool:
        """Whether the text begins with a JSON object that is valid and has the right values.

        It may stand in a fenced block, and anything may follow it. It must not have a key twice.
        """
        found = re.match(r"\s*(?:```(?:json)?\s*)?(?=\{)", text)
        if found is None:
            return False
        try:
            call, _ = _DECODER.raw_decode(text, found.end())
        except (ValueError, RecursionError):
            return False
        schemas: Any = query.about["functions"]
        return not problems(call, schemas) and call == query.about["call"]

    def solve(self, context: str, query: Query) -> str:
        """Finds the function by its purpose and the arguments by their descriptions."""
        for line in context.splitlines():
            schema: dict[str, Any] = json.loads(line) if line.startswith("{") else {}
            if not schema or f": {schema['description'][:-1]}:" not in query.text:
                continue
            arguments: dict[str, object] = {}
            for key, rule in schema["parameters"]["properties"].items():
                what = rule["description"].split(":")[0]
                found = re.search(rf"{what} ([\w ]+)[,.]", query.text)
                value = found[1] if found else ""
                if "enum" in rule:
                    arguments[key] = rule["enum"][LEVELS.index(value)]
                else:
                    arguments[key] = int(value) if rule["type"] == "integer" else value
            return " " + json.dumps({"name": schema["name"], "arguments": arguments})
        return ""


def _call(rng: random.Random, part: str, function: Function) -> tuple[str, list[dict[str, object]]]:
    """A request in words, the right call and three wrong ones."""
    spec, level = function.spec, rng.randrange(len(LEVELS))
    value: object = rng.randint(11, 99) if spec.integer else people_names(rng, 1)[0]
    text = (
        "Use one of the functions given at the start: "
        f"{spec.purpose}: {spec.object} {value}, {spec.scale} {LEVELS[level]}."
    )
    variants = [function]
    if part == "name":
        variants += [replace(function, name=n) for n in spec.names if n != function.name]
    elif part == "key":
        own = function.scale_key
        variants += [replace(function, scale_key=k) for k in spec.scale_keys if k != own]
    else:
        used = function.levels
        variants += [
            replace(function, levels=(*used[:level], word, *used[level + 1 :]))
            for word in spec.levels[level]
            if word != used[level]
        ]
    calls: list[dict[str, object]] = [
        {"name": v.name, "arguments": {v.object_key: value, v.scale_key: v.levels[level]}}
        for v in variants
    ]
    return text, calls


def _no_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


_DECODER = json.JSONDecoder(object_pairs_hook=_no_doubles)
