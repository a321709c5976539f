"""Builds HTML out of nested calls: whatever is not already markup is escaped.

Knows nothing of the page. There is no way to put text into it unescaped but `Markup`, used here alone.
"""

from collections.abc import Iterable
from html import escape

Child = object
"""Markup as it is; None and False vanish; a list is its parts; anything else is escaped text."""

_VOID = frozenset({"meta", "input", "br", "link"})
_WITHOUT_UNDERSCORE = {"class_": "class", "for_": "for"}


class Markup(str):
    """Text that is HTML."""

    __slots__ = ()


def tag(name: str, /, *children: Child, **attributes: object) -> Markup:
    """One element. An attribute that is None or False is left out, one that is True stands alone.

    `class_`, `for_` and `aria_label` are the attributes without or with their sign.
    """
    head = name + "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{head}>")
    return Markup(f"<{head}>{join(children)}</{name}>")


def join(children: Iterable[Child]) -> Markup:
    """The children one after another."""
    return Markup("".join(_rendered(child) for child in children))


def document(language: str, *children: Child) -> str:
    """A whole page."""
    return f"<!doctype html>\n{tag('html', *children, lang=language)}\n"


def raw(element: str, text: str) -> Markup:
    """A style sheet or a script as it is; it comes from this package, never from outside."""
    return Markup(f"<{element}>{text}</{element}>")


def _rendered(child: Child) -> str:
    match child:
        case None | False:
            return ""
        case Markup():
            return child
        case list() | tuple():
            return join(child)
        case _:
            return escape(str(child))


def _attribute(key: str, value: object) -> str:
    name = _WITHOUT_UNDERSCORE.get(key, key.replace("_", "-"))
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
