"""Runs the chat template of a model file, a program from a stranger, within fixed bounds.

The sandbox of Jinja keeps a template from Python's internals but not from running for ever or
filling the memory. Here loops, calls, filters and operators draw on a budget of work.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
import time
from collections.abc import Callable
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_TEMPLATE_CHARS = 256 * 1024
MAX_WORK = 32 * 1024 * 1024
MAX_SECONDS = 60.0
FIXED_DATE = datetime.datetime(2025, 1, 1)

# What chat templates use; the others of Jinja (center, batch, lipsum ...) can grow a text
# without bound or have no place in a template.
_FILTERS = (
    "abs capitalize count d default dictsort e escape first float groupby indent int items join "
    "last length list lower map max min reject rejectattr replace reverse round safe select "
    "selectattr sort string sum title trim unique upper"
).split()
_REFUSED_METHODS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "translate"})
_MAX_INT_ARGUMENT = 1000
_MAX_INT_BITS = 4096


class BudgetError(SecurityError):
    """The template asked for more work or memory than a chat template can need."""


class RaisedByTemplate(TemplateError):
    """The template refused the conversation through its own `raise_exception`."""


class _Generation(Extension):
    """Accepts `{% generation %}`, which some templates put around assistant turns."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class MeteredEnvironment(ImmutableSandboxedEnvironment):
    """A sandboxed environment whose templates work against a budget."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        """Set up the filters and globals that chat templates use, and no others."""
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
            finalize=self._printed,
        )
        self.left = 0
        self.deadline = 0.0
        self.filters = {name: self._metered_filter(name, self.filters[name]) for name in _FILTERS}
        self.filters["tojson"] = self._metered_filter("tojson", _tojson)
        self.globals = {
            "range": self.globals["range"],
            "dict": dict,
            "namespace": self.globals["namespace"],
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def begin(self, allowance: int) -> None:
        """Fill the budget before a compilation or a rendering."""
        self.left = MAX_WORK + allowance
        self.deadline = time.monotonic() + MAX_SECONDS

    def spend(self, amount: int) -> None:
        """Draw `amount` units of work, or stop the template."""
        self.left -= amount
        if self.left < 0 or time.monotonic() > self.deadline:
            raise BudgetError("the template does too much work (endless loop or huge text)")

    def tick(self) -> str:
        """Count one pass of a loop or a macro; prints nothing."""
        self.spend(100)
        return ""

    def tick_test(self) -> bool:
        """Count one test of a filtered loop; always true."""
        self.spend(100)
        return True

    def join_operands(self, *parts: Any) -> str:
        """Join the operands of `~`, in place of the operator."""
        self._charge(parts)
        return "".join(str(part) for part in parts)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call a function or method for a template, counted and with bounded arguments."""
        __self.spend(100)
        name = getattr(__obj, "__name__", "")
        # The sandbox wraps str.format; the format string belongs to the wrapped method.
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        __self._check_call(name, owner, args, kwargs)
        result = super().call(__context, __obj, *args, **kwargs)
        __self._charge(result)
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute an operator that can make a large value out of small ones."""
        if operator == "+":
            self._charge((left, right))
        elif operator == "*":
            for value, other in ((left, right), (right, left)):
                if isinstance(other, int) and not isinstance(value, (int, float)):
                    self.spend(self._size(value) * max(other, 0))
            if _bits(left) + _bits(right) > _MAX_INT_BITS:
                raise BudgetError("a number in the template becomes too large")
        elif operator == "**":
            if _bits(left) * abs(right if isinstance(right, int) else 1) > _MAX_INT_BITS:
                raise BudgetError("a number in the template becomes too large")
        elif isinstance(left, str):
            _check_format(left)
            self._charge((left, right))
        return super().call_binop(context, operator, left, right)

    def _printed(self, value: Any) -> Any:
        self._charge(value)
        return value

    def _charge(self, value: Any) -> None:
        self.spend(self._size(value))

    def _size(self, value: Any) -> int:
        """Return about how many characters `value` prints as; stops when over the budget."""
        total = 0
        stack = [value]
        while stack and total <= self.left:
            item = stack.pop()
            if isinstance(item, (str, bytes)):
                total += len(item)
            elif isinstance(item, range):
                total += len(item)
            elif isinstance(item, dict):
                stack.extend(item.keys())
                stack.extend(item.values())
            elif isinstance(item, (list, tuple, set, frozenset)):
                stack.extend(item)
            total += 4
        return total

    def _check_call(self, name: str, owner: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self._charge((args, kwargs))
        if not isinstance(owner, (str, bytes)):
            return
        self.spend(len(owner))
        if name in _REFUSED_METHODS:
            raise BudgetError(f"the method {name}() is not available to templates")
        if name in ("format", "format_map"):
            _check_format(str(owner))
        elif name == "replace" and len(args) >= 2:
            self._check_replace(owner, args[0], args[1])
        elif name == "join" and args:
            self._check_join(args[0], owner)

    def _check_replace(self, text: Any, old: Any, new: Any) -> None:
        if isinstance(text, str) and isinstance(old, str) and isinstance(new, str):
            self.spend(text.count(old) * len(new))

    def _check_join(self, items: Any, separator: Any) -> None:
        if isinstance(separator, str) and isinstance(items, (list, tuple, str, dict)):
            self.spend(len(items) * len(separator))

    def _metered_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        passed = 1 if getattr(function, "jinja_pass_arg", None) is not None else 0

        @functools.wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            given = args[passed:]
            self.spend(100)
            self._charge((given, kwargs))
            for value in (*given[1:], *kwargs.values()):
                if isinstance(value, int) and abs(value) > _MAX_INT_ARGUMENT:
                    raise BudgetError(f"a number given to the filter {name} is too large")
            if name == "replace" and len(given) >= 3:
                self._check_replace(*(str(value) for value in given[:3]))
            elif name == "join" and len(given) >= 2:
                self._check_join(given[0], given[1])
            elif name == "indent" and isinstance(given[0], str):
                self.spend(given[0].count("\n") * _indent_width(given, kwargs))
            result = function(*args, **kwargs)
            self._charge(result)
            return result

        return metered


def meter(tree: nodes.Template) -> nodes.Template:
    """Put a call to the meter into every loop and macro and in place of every `~`."""
    for loop in tree.find_all(nodes.For):
        loop.body.insert(0, nodes.Output([_meter_call("tick", [])]))
        if loop.test is not None:
            loop.test = nodes.And(_meter_call("tick_test", []), loop.test)
    for macro in tree.find_all(nodes.Macro):
        macro.body.insert(0, nodes.Output([_meter_call("tick", [])]))
    for block in tree.find_all(nodes.CallBlock):
        block.body.insert(0, nodes.Output([_meter_call("tick", [])]))
    _replace_concat(tree)
    return tree


def _replace_concat(node: nodes.Node) -> None:
    for field, value in node.iter_fields():
        if isinstance(value, nodes.Node):
            _replace_concat(value)
            if isinstance(value, nodes.Concat):
                setattr(node, field, _meter_call("join_operands", value.nodes))
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, nodes.Node):
                    _replace_concat(item)
                    if isinstance(item, nodes.Concat):
                        value[index] = _meter_call("join_operands", item.nodes)


def _meter_call(name: str, args: list[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), args, [], None, None)


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _indent_width(given: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    width = kwargs.get("width", given[1] if len(given) > 1 else 4)
    return width if isinstance(width, int) else len(str(width))


def _check_format(text: str) -> None:
    if re.search(r"\d{3}|[%.\d]\*|\{[^{}]*\{", text):
        raise BudgetError("a format string in the template asks for a huge or computed width")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Dump as JSON the way chat templates expect: Unicode kept, nothing escaped for HTML."""
    if indent is not None and not 0 <= indent <= 16:
        raise BudgetError("the indent given to the filter tojson is too large")
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: object = "") -> None:
    raise RaisedByTemplate(str(message)[:500])


def _strftime_now(pattern: str) -> str:
    # A fixed date, so that the same document gives the same tokens on every day.
    if len(pattern) > 200 or re.search(r"%[-_0^#]*\d", pattern):
        raise BudgetError("the date format in the template is too long or sets a width")
    return FIXED_DATE.strftime(pattern)
