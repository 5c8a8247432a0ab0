"""Whether a record is what its dataclass says: no unknown field, every value of its type."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin, get_type_hints

from nybble.errors import NybbleError
from nybble.results.records import read_record

_MOST = 20  # problems are many in a file that is something else


def read_checked(text: str, kind: type[Any], newest: int, name: str) -> Any:
    """Read a record and check every value of it, which `read_record` alone does not.

    Args:
        text: JSON.
        kind: its dataclass.
        newest: schema version that this nybble writes.
        name: what it is called in errors.

    Raises:
        NybbleError: not such a record, of a newer schema, with unknown fields or wrong types.
    """
    found = read_record(text, kind, newest, name)
    wrong = []
    for problem in problems(kind, json.loads(text)):
        wrong.append(problem)
        if len(wrong) == _MOST:
            break
    if wrong:
        raise NybbleError(f"a damaged nybble {name}", seen="; ".join(wrong[:3]),
                          allowed="values of the types that nybble writes")  # fmt: skip
    return found


def problems(kind: Any, data: Any, where: str = "") -> Iterator[str]:
    """What keeps a piece of JSON from being a value of this type, with its place."""
    origin, args = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        yield from _of_record(kind, data, where)
    elif origin in (Union, types.UnionType):
        rest = [a for a in args if a is not type(None)]
        if data is not None or len(rest) == len(args):
            yield from problems(rest[0], data, where)
    elif origin is list:
        yield from _each(list, enumerate(data) if isinstance(data, list) else None, args[0], where)
    elif origin is dict:
        yield from _each(dict, data.items() if isinstance(data, dict) else None, args[1], where)
    elif kind is not Any and not _is(kind, data):
        yield f"{where or 'it'} is no {kind.__name__}: {str(data)[:40]}"


def _of_record(kind: type[Any], data: Any, where: str) -> Iterator[str]:
    if not isinstance(data, dict):
        yield f"{where or 'it'} is no {kind.__name__}: {str(data)[:40]}"
        return
    hints = get_type_hints(kind)
    for name, value in data.items():
        at = f"{where}.{name}" if where else name
        if name in hints:
            yield from problems(hints[name], value, at)
        else:
            yield f"unknown field {at[:80]}"


def _each(kind: type[Any], items: Any, of: Any, where: str) -> Iterator[str]:
    if items is None:
        yield f"{where or 'it'} is no {kind.__name__}"
        return
    for key, value in items:
        yield from problems(of, value, f"{where}[{str(key)[:40]}]")


def _is(kind: type[Any], data: Any) -> bool:
    if kind is float:  # JSON's whole numbers have no end, floats do
        return type(data) is float or (type(data) is int and abs(data) < 2**63)
    return type(data) is kind
