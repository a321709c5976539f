"""Filter expressions of list endpoints: the part of Nomad's (go-bexpr) language that its users write.

Knows nothing of jobs or HTTP. `compile_filter` returns a function over the shown fields of an object.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

Fields = Mapping[str, Any]
Test = Callable[[Fields], bool]

_TOKEN = re.compile(
    r"""\s*(?:(?P<punct>==|!=|\(|\)|\[|\])|(?P<text>"(?:[^"\\]|\\.)*"|`[^`]*`)"""
    r"""|(?P<number>-?\d+(?:\.\d+)?)|(?P<word>[A-Za-z][\w./]*)|(?P<other>\S))"""
)
_EXPECTED = "no match found, expected: "
_SPACE_OR_LETTER = r"[ \t\r\n], [1-9] or [a-zA-Z]"
_EXPECTED_TERM = _EXPECTED + r'"(", "-", "0", "\"", "`", "all", "any", "not", ' + _SPACE_OR_LETTER
_EXPECTED_VALUE = _EXPECTED + r'"-", "0", "\"", "`", ' + _SPACE_OR_LETTER
_EXPECTED_OPERATOR = _EXPECTED + r'"!=", "==", "contains", "in", "is", "matches", "not" or [ \t\r\n]'
_SYNTAX = "failed to create result paginator: failed to read filter expression: "
_READING = "failed to read result page: "
_TRUE = {"true", "1", "t", "T", "TRUE", "True"}
_FALSE = {"false", "0", "f", "F", "FALSE", "False"}
_MISSING = object()


class BadFilter(Exception):
    """The expression is wrong; the message is close to Nomad's, to be sent with status 400."""


def compile_filter(expression: str) -> Test:
    """Parse an expression.

    Raises:
        BadFilter: at once for bad syntax; from the returned function for an unknown field or a bad value.
    """
    return _Parser(expression).parse()


class _Parser:
    def __init__(self, expression: str) -> None:
        self._source = expression
        self._tokens: list[tuple[str, str, int]] = []
        position = 0
        while expression[position:].strip():
            match = _TOKEN.match(expression, position)
            assert match is not None  # noqa: S101 - `other` takes any character
            kind = match.lastgroup or ""
            self._tokens.append((kind, match[kind], match.start(kind)))
            position = match.end()
        self._at = 0

    def parse(self) -> Test:
        test = self._or()
        if self._at < len(self._tokens):
            raise self._error(self._tokens[self._at][2], 'no match found, expected: "and", "or" or EOF')
        return test

    def _error(self, offset: int, problem: str) -> BadFilter:
        return BadFilter(f"{_SYNTAX}1:{offset + 1} ({offset}): {problem}")

    def _peek(self) -> tuple[str, str, int]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "", len(self._source))

    def _next(self) -> tuple[str, str, int]:
        token = self._peek()
        self._at += 1
        return token

    def _accept(self, *words: str) -> bool:
        kind, value, _ = self._peek()
        found = kind in {"word", "punct"} and value in words
        self._at += found
        return found

    def _or(self) -> Test:
        tests = [self._and()]
        while self._accept("or"):
            tests.append(self._and())
        return tests[0] if len(tests) == 1 else lambda item: any(test(item) for test in tests)

    def _and(self) -> Test:
        tests = [self._not()]
        while self._accept("and"):
            tests.append(self._not())
        return tests[0] if len(tests) == 1 else lambda item: all(test(item) for test in tests)

    def _not(self) -> Test:
        if self._accept("not"):
            test = self._not()
            return lambda item: not test(item)
        opened = self._peek()[2]
        if self._accept("("):
            test = self._or()
            if not self._accept(")"):
                end = self._peek()[2]
                raise self._error(max(end, opened), 'rule "grouping": Unmatched parentheses')
            return test
        return self._match()

    def _match(self) -> Test:
        kind, value, offset = self._next()
        if kind in {"text", "number"}:
            negated = self._accept("not")
            if not self._accept("in"):
                raise self._error(self._peek()[2], 'no match found, expected: "in", "not" or [ \\t\\r\\n]')
            return self._membership(self._selector(), _literal(kind, value), negated=negated)
        if kind != "word":
            raise self._error(offset, _EXPECTED_TERM)
        self._at -= 1
        return self._comparison(self._selector())

    def _selector(self) -> list[str]:
        kind, value, offset = self._next()
        if kind != "word":
            raise self._error(offset, 'rule "match": Invalid selector')
        path = value.split(".")
        while self._accept("["):
            _, index, _ = self._next()
            path.append(_literal("text", index))
            if not self._accept("]"):
                raise self._error(self._peek()[2], 'rule "index": Unclosed index expression')
        return path

    def _comparison(self, path: list[str]) -> Test:
        if self._accept("=="):
            return self._equality(path, self._value(), negated=False)
        if self._accept("!="):
            return self._equality(path, self._value(), negated=True)
        if self._accept("is"):
            negated = self._accept("not")
            if not self._accept("empty", "nil"):
                raise self._error(self._peek()[2], 'no match found, expected: "empty", "nil" or "not"')
            return lambda item: (not _find(item, path, default=None)) != negated
        negated = self._accept("not")
        if self._accept("contains"):
            return self._membership(path, self._value(), negated=negated)
        if self._accept("matches"):
            return self._pattern(path, self._value(), negated=negated)
        if self._accept("in"):
            # The word on the left is a value here: `word in Selector`.
            return self._membership(self._selector(), ".".join(path), negated=negated)
        raise self._error(self._peek()[2], _EXPECTED_OPERATOR)

    def _value(self) -> str:
        kind, value, offset = self._next()
        if kind not in {"text", "number", "word"}:
            raise self._error(offset, _EXPECTED_VALUE)
        return _literal(kind, value)

    @staticmethod
    def _equality(path: list[str], wanted: str, *, negated: bool) -> Test:
        def test(item: Fields) -> bool:
            found = _find(item, path)
            return found is not _MISSING and _equal(found, wanted) != negated

        return test

    @staticmethod
    def _membership(path: list[str], wanted: str, *, negated: bool) -> Test:
        def test(item: Fields) -> bool:
            found = _find(item, path, default=())
            return (wanted in (found or ())) != negated

        return test

    @staticmethod
    def _pattern(path: list[str], wanted: str, *, negated: bool) -> Test:
        try:
            pattern = re.compile(wanted)
        except re.error as error:
            problem = f'failed to compile regular expression "{wanted}": error parsing regexp: {error}'
            message = _READING + problem

            def fail(_item: Fields) -> bool:
                raise BadFilter(message)

            return fail

        def test(item: Fields) -> bool:
            found = _find(item, path)
            return found is not _MISSING and (pattern.search(str(found)) is not None) != negated

        return test


def _literal(kind: str, value: str) -> str:
    if kind == "text" and value[:1] in {'"', "`"}:
        inner = value[1:-1]
        return re.sub(r"\\(.)", r"\1", inner) if value[0] == '"' else inner
    return value


def _find(item: Fields, path: list[str], default: Any = _MISSING) -> Any:
    """Return the value at a path. A missing key of a map is no value; an unknown field is an error."""
    value: Any = item
    for depth, part in enumerate(path):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif depth == 0:
            what = f'couldn\'t find key: struct field with name "{part}"'
            problem = f"error finding value in datum: /{'/'.join(path)} at part {depth}: {what}"
            raise BadFilter(_READING + problem)
        else:
            return default
    return value


def _equal(found: Any, wanted: str) -> bool:
    if isinstance(found, bool):
        return wanted in (_TRUE if found else _FALSE)
    if isinstance(found, int):
        try:
            return found == int(wanted)
        except ValueError:
            problem = f'strconv.ParseInt: parsing "{wanted}": invalid syntax'
            message = f"{_READING}error getting match value in expression: {problem}"
            raise BadFilter(message) from None
    return str(found) == wanted
