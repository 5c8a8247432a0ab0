"""Runs inside the environment that is probed: versions and values as JSON on stdout.

`probe.py` hands the text of this file to an interpreter with -c: it may be of another environment
and an older Python, so nothing but the standard library is used, as of 3.9. Engines are not
imported: that takes long, may crash, and runs their code; their source is read as a syntax tree.
The one exception is xllamacpp, which is compiled. The last argument is the question, in JSON.
"""

from __future__ import annotations

import sys

# With -c the current folder comes first; a file there named like a module must not be run.
sys.path[:] = [place for place in sys.path if place]

import ast  # noqa: E402
import importlib.util  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from importlib import metadata  # noqa: E402
from typing import Any  # noqa: E402

MAX_SOURCE = 8 << 20
_NOTHING = ast.parse("")


def answer(question: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per package asked for: version, folder, and what was found at its places."""
    found = []
    for asked in question:
        try:
            dist = metadata.distribution(asked["package"])
            version = str(dist.version)
        except Exception:  # not installed, or metadata that cannot be read
            continue
        places = [_look(dist, place) for place in asked["places"]]
        where = next((p["path"] for p in places if p.get("path")), str(dist.locate_file("")))
        found.append(
            {"package": asked["package"], "version": version, "where": where, "places": places}
        )
    return found


def _look(dist: metadata.Distribution, place: dict[str, str]) -> dict[str, Any]:
    path = None
    try:
        if place["kind"] == "import":
            return {"file": place["file"], "values": compiled(place["file"])}
        path = locate(dist, place["file"])
        if path is None:
            return {"file": place["file"], "values": [], "problem": "not there"}
        with open(path, "rb") as file:
            tree = ast.parse(file.read(MAX_SOURCE))
        values = READERS[place["kind"]](tree, place["name"], place["inside"])
        return {"file": place["file"], "path": path, "values": values}
    except Exception as error:
        problem = f"{type(error).__name__}: {str(error)[:200]}"
        return {"file": place["file"], "path": path, "values": [], "problem": problem}


def locate(dist: metadata.Distribution, file: str) -> str | None:
    """A file of a package: beside its metadata, or where an editable install points."""
    path = str(dist.locate_file(file))
    if os.path.isfile(path):
        return path
    top, _, rest = file.partition("/")
    spec = importlib.util.find_spec(top)  # of a top-level name: imports nothing
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = os.path.join(folder, *rest.split("/"))
        if os.path.isfile(path):
            return path
    return None


def assigned(tree: ast.AST, name: str, inside: str) -> list[str]:
    """Constants of `NAME = Literal[...]`, or of a list, a tuple or a set."""
    for node in ast.walk(_scope(tree, inside)):
        targets: list[Any] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        if any(isinstance(t, ast.Name) and t.id == name for t in targets):
            return _constants(getattr(node, "value", None))
    return []


def choices(tree: ast.AST, name: str, inside: str) -> list[str]:
    """Constants of choices=[...] in `NAME: A[str, Arg(choices=[...])]` or add_argument(NAME)."""
    for node in ast.walk(_scope(tree, inside)):
        part: ast.AST
        if isinstance(node, ast.AnnAssign) and _named(node.target, name):
            part = node.annotation
        elif isinstance(node, ast.Call) and _takes(node, name):
            part = node
        else:
            continue
        for inner in ast.walk(part):
            if isinstance(inner, ast.keyword) and inner.arg == "choices":
                return _constants(inner.value)
    return []


def members(tree: ast.AST, name: str, inside: str) -> list[str]:
    """Names of an enum's members, in small letters."""
    body = getattr(_scope(tree, name), "body", [])
    targets = [t for n in body if isinstance(n, ast.Assign) for t in n.targets]
    return [t.id.lower() for t in targets if isinstance(t, ast.Name) and t.id[0] != "_"]


def compared(tree: ast.AST, name: str, inside: str) -> list[str]:
    """Constants that NAME is compared with: ==, in, not in."""
    found = []
    for node in _in_order(_scope(tree, inside)):
        if isinstance(node, ast.Compare) and _named(node.left, name):
            if isinstance(node.ops[0], (ast.Eq, ast.In, ast.NotIn)):
                found += _constants(node.comparators[0])
    return list(dict.fromkeys(found))


def bounds(tree: ast.AST, name: str, inside: str) -> list[str]:
    """Every whole number of `LOW <= NAME <= HIGH`."""
    for node in ast.walk(_scope(tree, inside)):
        if not isinstance(node, ast.Compare) or len(node.comparators) != 2:
            continue
        low, high = node.left, node.comparators[1]
        within = _named(node.comparators[0], name) and all(isinstance(o, ast.LtE) for o in node.ops)
        if within and isinstance(low, ast.Constant) and isinstance(high, ast.Constant):
            first, last = int(str(low.value)), int(str(high.value))
            return [str(n) for n in range(first, min(last, first + 64) + 1)]
    return []


def classes(tree: ast.AST, name: str, inside: str) -> list[str]:
    """What follows NAME in the names of a file's classes."""
    body = getattr(tree, "body", [])
    found = [n.name for n in body if isinstance(n, ast.ClassDef)]
    return [n[len(name) :] for n in found if n.startswith(name) and n != name]


def argument(tree: ast.AST, name: str, inside: str) -> list[str]:
    """NAME itself where some parser takes it."""
    calls = (n for n in ast.walk(tree) if isinstance(n, ast.Call))
    return [name] if any(_takes(call, name) for call in calls) else []


def compiled(module: str) -> list[str]:
    """Names of ggml's types in xllamacpp, in small letters."""
    names = [str(t.name) for t in importlib.import_module(module).ggml_type]
    return [n[len("GGML_TYPE_") :].lower() for n in names if n.startswith("GGML_TYPE_")]


def _scope(tree: ast.AST, inside: str) -> ast.AST:
    """The class of a name, or the whole file."""
    if not inside:
        return tree
    found = (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == inside)
    return next(found, _NOTHING)


def _in_order(node: ast.AST) -> Iterator[ast.AST]:
    """As ast.walk, but the way one reads."""
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _in_order(child)


def _constants(node: ast.AST | None) -> list[str]:
    """Strings and whole numbers in a literal, in their order."""
    seen = [n.value for n in _in_order(node or _NOTHING) if isinstance(n, ast.Constant)]
    return [str(v) for v in seen if isinstance(v, (str, int)) and not isinstance(v, bool)]


def _named(node: ast.AST, name: str) -> bool:
    """Whether an expression is NAME, self.NAME or NAME.lower()."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        node = node.func.value
    return getattr(node, "id", getattr(node, "attr", None)) == name


def _takes(call: ast.Call, name: str) -> bool:
    return any(isinstance(a, ast.Constant) and a.value == name for a in call.args)


READERS = {
    "assigned": assigned,
    "choices": choices,
    "members": members,
    "compared": compared,
    "bounds": bounds,
    "classes": classes,
    "argument": argument,
}

if __name__ == "__main__":
    out = sys.stdout
    sys.stdout = sys.stderr  # what an import prints is no answer
    json.dump(answer(json.loads(sys.argv[-1])), out)
    out.flush()
    os._exit(0)  # a compiled module may crash when it ends
