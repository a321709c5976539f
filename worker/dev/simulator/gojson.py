"""Go's answers to malformed JSON and base64, so that a bad request gets the very text a real server sends.

Knows nothing of the requests it reads.
"""

import base64
import binascii
import json
import re
from typing import Any

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_SPACE = " \t\r\n"
_ALPHABET = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
_MAY_BE_PADDED = {2: b"\r\n=", 3: b"\r\n"}
"""By the size of the last group: what may follow its first padding character."""
_KINDS = {bool: "bool", int: "number", float: "number", str: "string", list: "array", dict: "object"}


class Malformed(Exception):
    """The body cannot be read; the message is Go's, to be sent with status 400."""


def decode(body: bytes) -> Any:
    """Return the first JSON value of a body; whatever follows it is ignored, as Go's decoder does.

    Raises:
        Malformed: with Go's text.
    """
    if not body:
        msg = "Request body is empty"
        raise Malformed(msg)
    text = body.decode("utf-8", "replace").lstrip(_SPACE)
    try:
        value, _ = json.JSONDecoder(strict=False).raw_decode(text)
    except ValueError:
        raise Malformed(_explain(text)) from None
    return value


def kind(value: Any) -> str:
    """Return Go's word for the type of a JSON value."""
    return _KINDS.get(type(value), "null")


def wrong_type(value: Any, field: str, go_type: str) -> Malformed:
    """Make the error of a value that does not fit a struct's field ("Struct.Field")."""
    return Malformed(f"json: cannot unmarshal {kind(value)} into Go struct field {field} of type {go_type}")


def decode_base64(text: str) -> bytes:
    """Decode standard base64 with padding; line breaks are skipped.

    Raises:
        Malformed: with the position Go reports.
    """
    packed = text.replace("\n", "").replace("\r", "")
    try:
        return base64.b64decode(packed, validate=True)
    except (binascii.Error, ValueError):
        msg = f"illegal base64 data at input byte {_bad_base64(text)}"
        raise Malformed(msg) from None


def _bad_base64(text: str) -> int:
    """Return where Go's decoder gives up: the bad byte, or the start of an incomplete group of four."""
    data = text.encode()
    group = 0
    for position, byte in enumerate(data):
        if byte in b"\r\n":
            continue
        if byte in _ALPHABET:
            group = (group + 1) % 4
        elif byte == ord("=") and group in _MAY_BE_PADDED:
            rest = data[position + 1 :].lstrip(_MAY_BE_PADDED[group])
            return len(data) - len(rest) if rest else len(data)
        else:
            return position
    return len(data) - group


def _explain(text: str) -> str:
    """Return Go's complaint about a text that is no JSON value."""
    try:
        _value(text, 0)
    except Malformed as complaint:
        return str(complaint)
    except IndexError:
        return "unexpected EOF"
    return "unexpected EOF"


def _skip(text: str, position: int) -> int:
    while text[position] in _SPACE:
        position += 1
    return position


def _invalid(text: str, position: int, where: str) -> Malformed:
    return Malformed(f"invalid character {text[position]!r} {where}")


def _value(text: str, position: int) -> int:
    """Return the position after the value that begins here."""
    position = _skip(text, position)
    character = text[position]
    if character == "{":
        return _object(text, position + 1)
    if character == "[":
        return _array(text, position + 1)
    for pattern in (_STRING, _NUMBER):
        if match := pattern.match(text, position):
            return match.end()
    if character == '"':
        raise IndexError
    for word in ("true", "false", "null"):
        if character == word[0]:
            return _word(text, position, word)
    raise _invalid(text, position, "looking for beginning of value")


def _word(text: str, position: int, word: str) -> int:
    for offset, expected in enumerate(word):
        if text[position + offset] != expected:
            raise _invalid(text, position + offset, f"in literal {word} (expecting {expected!r})")
    return position + len(word)


def _object(text: str, position: int) -> int:
    position = _skip(text, position)
    while text[position] != "}":
        if text[position] != '"':
            raise _invalid(text, position, "looking for beginning of object key string")
        position = _skip(text, _value(text, position))
        if text[position] != ":":
            raise _invalid(text, position, "after object key")
        position = _skip(text, _value(text, position + 1))
        if text[position] == ",":
            position = _skip(text, position + 1)
        elif text[position] != "}":
            raise _invalid(text, position, "after object key:value pair")
    return position + 1


def _array(text: str, position: int) -> int:
    position = _skip(text, position)
    while text[position] != "]":
        position = _skip(text, _value(text, position))
        if text[position] == ",":
            position += 1
        elif text[position] != "]":
            raise _invalid(text, position, "after array element")
    return position + 1
