"""Reads blocks into API objects by a table of what each block type may contain.

Knows how to convert and what to refuse; the tables are given.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from worker.dev.simulator.durations import parse_duration
from worker.dev.simulator.hcl import Block
from worker.dev.simulator.hcl_values import HclError, as_number, as_text

Convert = Callable[[Any], Any]


def text(value: Any) -> str:
    """Return a string, a number or a truth value as text."""
    return as_text(value)


def integer(value: Any) -> int:
    """Return a whole number, also from its text."""
    number = as_number(value)
    if isinstance(number, float):
        msg = "a whole number is required"
        raise TypeError(msg)
    return number


def duration(value: Any) -> int:
    """Return the nanoseconds of "1h30m", or of a bare number of nanoseconds."""
    return parse_duration(value) if isinstance(value, str) else integer(value)


def texts(value: Any) -> list[str]:
    """Return a list of texts."""
    if not isinstance(value, list):
        msg = "a list of strings is required"
        raise TypeError(msg)
    return [as_text(item) for item in value]


def text_map(value: Any) -> dict[str, str]:
    """Return a map of texts."""
    if not isinstance(value, dict):
        msg = "a map of strings is required"
        raise TypeError(msg)
    return {name: as_text(item) for name, item in value.items()}


@dataclass(frozen=True, slots=True)
class Shape:
    """What one block type may contain.

    `attributes`: argument → (API key, conversion). `blocks`: block type → what reads it.
    `label`: API key of the block's one label. `maps`: arguments or blocks that are free-form maps.
    """

    attributes: Mapping[str, tuple[str, Convert]] = field(default_factory=dict)
    blocks: Mapping[str, "Nested"] = field(default_factory=dict)
    maps: Mapping[str, str] = field(default_factory=dict)
    label: str | None = None

    def read(self, block: Block) -> dict[str, Any]:
        """Return the API object of a block."""
        result: dict[str, Any] = {}
        if len(block.labels) != (1 if self.label else 0):
            raise HclError(block.line, f'a "{block.type}" block takes {"one" if self.label else "no"} label')
        if self.label:
            result[self.label] = block.labels[0]
        for name, value in block.attributes.items():
            line = block.lines[name]
            if name in self.maps:
                result[self.maps[name]] = _convert(text_map, name, value, line)
            elif name in self.attributes:
                key, convert = self.attributes[name]
                if value is not None:
                    result[key] = _convert(convert, name, value, line)
            else:
                raise HclError(line, f'the argument "{name}" is not supported in a "{block.type}" block')
        seen: set[str] = set()
        for inner in block.blocks:
            nested = self.blocks.get(inner.type)
            if inner.type in seen and (nested is None or not nested.many):
                raise HclError(
                    inner.line, f'only one "{inner.type}" block is allowed in a "{block.type}" block'
                )
            seen.add(inner.type)
            if inner.type in self.maps:
                result[self.maps[inner.type]] = _free_map(inner)
            elif nested is None:
                raise HclError(
                    inner.line, f'the block "{inner.type}" is not supported in a "{block.type}" block'
                )
            elif nested.many:
                result.setdefault(nested.key, []).append(nested.read(inner))
            else:
                result[nested.key] = nested.read(inner)
        return result


@dataclass(frozen=True, slots=True)
class Nested:
    """Where the object of an inner block goes, and what reads it; `many` makes a list of them."""

    key: str
    read: Callable[[Block], Any]
    many: bool = False


def _convert(convert: Convert, name: str, value: Any, line: int) -> Any:
    try:
        return convert(value)
    except (TypeError, ValueError) as error:
        raise HclError(line, f"{name}: {error}") from error


def _free_map(block: Block) -> dict[str, str]:
    if block.blocks or block.labels:
        raise HclError(block.line, f'a "{block.type}" block holds only arguments')
    return {
        name: _convert(as_text, name, value, block.lines[name]) for name, value in block.attributes.items()
    }
