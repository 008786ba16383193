"""`when:` of a stage: a condition over `${name}`, decided from values alone. Nothing is ever executed.

    condition   either `or` either ..., each side joined by `and`, each part perhaps after `not`
    part        true or false, a `${name}` that is one of them, `(condition)`, or two values compared
    compared    by `==`, `!=`, `<`, `<=`, `>`, `>=`; a value with a list by `in`, `not in`
    value       `${name}`, a number, a word, "quoted text", true, false, null, [a, list]

It is strict: values of two kinds are not compared (but with null), and nothing but true and false counts as either. All
of a condition is worked out, so that what is wrong in it shows whatever its other parts are.
"""

from __future__ import annotations

import operator
import re
from collections import ChainMap
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

from mlops_cli.documents import Fields, describe
from mlops_cli.records.filling import ValueReader
from mlops_cli.records.stages import PARAMS_FILE, When
from mlops_cli.records.templates import TemplateError, look_up

_LONGEST = 1000
_DEEPEST = 20
_CONSTANTS: Mapping[str, object] = {"true": True, "false": False, "null": None}
_KEYWORDS = frozenset({"and", "or", "not", "in", *_CONSTANTS})
_ORDER: Mapping[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@cache
def _token() -> re.Pattern[str]:
    """Return the pattern of a token; most commands need none."""
    return re.compile(
        r"""\s*(?:(?P<name>\$\{[^{}]*\})
    |(?P<quoted>"[^"]*"|'[^']*')
    |(?P<number>[-+]?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?(?![\w.]))
    |(?P<word>[A-Za-z_][\w./@+-]*)
    |(?P<sign>[=!<>]=|[<>()\[\],])
    |(?P<end>\Z))""",
        re.VERBOSE,
    )


class _Token(NamedTuple):
    kind: str
    text: str


def read_when(reader: ValueReader, fields: Fields) -> When | None:
    """Return the condition at `when`, decided; None when there is none."""
    if not fields.has("when"):
        return None
    value = fields.raw("when")
    if isinstance(value, bool):
        return When("true" if value else "false", value)
    text = fields.check_text(value, "when").strip()
    try:
        return decide_when(text, ChainMap(dict(reader.names), dict(reader.params())))
    except TemplateError as error:
        raise fields.error(f"`when`: {error}", "when", error.hint) from error


def decide_when(text: str, names: Mapping[str, object]) -> When:
    """Return whether the condition `text` holds, and the values it took from `names`; TemplateError."""
    if len(text) > _LONGEST:
        raise TemplateError(f"a condition of more than {_LONGEST:,} characters", "put what it says in a parameter")
    reading = _Reading(_split(text), names)
    holds = reading.either(0)
    reading.expect_end()
    return When(text, holds, tuple(reading.used.items()))


def _split(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while not tokens or tokens[-1].kind != "end":
        match = _token().match(text, at)
        if match is None or match.lastgroup is None:
            rest = text[at:].lstrip()
            hint = "`=` is written `==`" if rest.startswith("=") else "text with other characters goes in quotes"
            raise TemplateError(f"`{rest[:20]}` is nothing that a condition can hold", hint)
        found = match[match.lastgroup]
        kind = "keyword" if match.lastgroup == "word" and found in _KEYWORDS else match.lastgroup
        tokens.append(_Token(kind, found))
        at = match.end()
    return tokens


class _Reading:
    """One pass over the tokens of a condition; `used` gets the names and their values."""

    def __init__(self, tokens: list[_Token], names: Mapping[str, object]) -> None:
        self.used: dict[str, object] = {}
        self._tokens = tokens
        self._names = names
        self._at = 0

    def expect_end(self) -> None:
        if self._next.kind != "end":
            raise TemplateError(f"`{self._next.text}` is not expected there", "join conditions by `and` or `or`")

    def either(self, depth: int) -> bool:
        found = self._both(depth)
        while self._take("or"):
            found = self._both(depth) or found
        return found

    def _both(self, depth: int) -> bool:
        found = self._part(depth)
        while self._take("and"):
            found = self._part(depth) and found
        return found

    def _part(self, depth: int) -> bool:
        if depth > _DEEPEST:
            raise TemplateError(f"nested more than {_DEEPEST} levels deep", "put what it says in a parameter")
        if self._take("not"):
            return not self._part(depth + 1)
        if self._take("("):
            found = self.either(depth + 1)
            self._expect(")")
            return found
        begin = self._at
        left = self._value()
        sign = self._take_comparison()
        if sign:
            return _compare(left, sign, self._value())
        if not isinstance(left, bool):
            spelled = self._tokens[begin].text
            raise TemplateError(f"`{spelled}` is {describe(left)}, not true or false", f"compare it: `{spelled} == …`")
        return left

    def _take_comparison(self) -> str:
        if self._take("in"):
            return "in"
        if self._next.text == "not" and self._tokens[self._at + 1].text == "in":
            self._at += 2
            return "not in"
        if self._next.kind == "sign" and self._next.text in ("==", "!=", *_ORDER):
            self._at += 1
            return self._tokens[self._at - 1].text
        return ""

    def _value(self) -> object:
        token = self._next
        if token.text == "[" and token.kind == "sign":
            return self._list()
        self._at += 1
        if token.kind == "name":
            name = token.text[2:-1].strip()
            self.used[name] = self._look_up(name)
            return self.used[name]
        if token.kind == "quoted":
            return token.text[1:-1]
        if token.kind == "number":
            return int(token.text) if token.text.lstrip("+-").isdigit() else float(token.text)
        if token.kind == "word":
            return token.text
        if token.text in _CONSTANTS and token.kind == "keyword":
            return _CONSTANTS[token.text]
        what = f"`{token.text}` stands" if token.text else "the condition ends"
        raise TemplateError(f"{what} where a value belongs", "a value is `${name}`, a number, a word or quoted text")

    def _look_up(self, name: str) -> object:
        try:
            return look_up(name, self._names)
        except TemplateError as error:
            near = error.hint if error.hint and error.hint.startswith("did you mean") else None
            raise TemplateError(str(error), near or f"define it in `{PARAMS_FILE}`, `vars` or `matrix`") from error

    def _list(self) -> list[object]:
        self._at += 1
        items: list[object] = []
        while not self._take("]"):
            if items:
                self._expect(",")
            if self._next.text == "[" and self._next.kind == "sign":
                raise TemplateError("a list holds no lists", "compare with values")
            items.append(self._value())
        return items

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self, text: str) -> bool:
        found = self._next.kind in ("keyword", "sign") and self._next.text == text
        self._at += found
        return found

    def _expect(self, text: str) -> None:
        if not self._take(text):
            raise TemplateError(f"`{text}` is missing before `{self._next.text or 'the end'}`")


def _compare(left: object, sign: str, right: object) -> bool:
    if sign in ("in", "not in"):
        if not isinstance(right, list):
            raise TemplateError(f"`{sign}` looks in a list, not in {describe(right)}", f"`… {sign} [a, b]`")
        found = any(_kind(left) == _kind(item) and left == item for item in right)
        return found if sign == "in" else not found
    if isinstance(left, list | dict) or isinstance(right, list | dict):
        raise TemplateError(f"`{sign}` compares no lists and mappings", "compare a value in it (`${name.key}`)")
    if sign in ("==", "!="):
        if None not in (left, right):
            _refuse_two_kinds(left, sign, right)
        return (left == right) is (sign == "==")
    _refuse_two_kinds(left, sign, right)
    if _kind(left) not in ("number", "text"):
        raise TemplateError(f"`{sign}` compares numbers or texts, not {describe(left)}", "use `==` or `!=`")
    return bool(_ORDER[sign](left, right))


def _refuse_two_kinds(left: object, sign: str, right: object) -> None:
    if _kind(left) != _kind(right):
        raise TemplateError(
            f"`{sign}` compares {describe(left)} with {describe(right)}",
            'they are two kinds of values: `"1"` is text, `1` a number',
        )


def _kind(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return str(type(value))
    return "number" if isinstance(value, int | float) else "text" if isinstance(value, str) else "other"
