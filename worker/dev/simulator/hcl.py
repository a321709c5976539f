"""HCL2 text to blocks with values: variables, locals, templates, operators and a few functions.

Knows the language, not Nomad: which blocks and arguments a job may have is decided elsewhere.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from worker.dev.simulator.hcl_values import FUNCTIONS, HclError, as_text, binary, unary

if TYPE_CHECKING:
    from lark import Token, Tree

    Node = Tree[Token]

_INSTALL = "python-hcl2 is not installed: pip install 'nomad-dispatch-worker[dev]'"
_RENDER = "; `nomad job run -output FILE` renders such a file to JSON"
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\"}
_SCOPES = ("var", "local")


@dataclass(slots=True)
class Block:
    """One block: `job "x" { ... }` has the type "job" and the labels ("x",)."""

    type: str
    labels: tuple[str, ...]
    line: int
    attributes: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    blocks: list["Block"] = field(default_factory=list)


def parse(text: str) -> Block:
    """Parse a file and evaluate everything in it.

    A reference to anything but `var` and `local` is left to run time: it becomes the text "${...}"
    exactly as written.

    Returns:
        A block without type and labels that holds the file's blocks; `variable`, `variables` and
        `locals` are used up.

    Raises:
        HclError: a mistake, or something this subset of the language lacks.
        ModuleNotFoundError: the HCL parser is not installed; the message says how to install it.
    """
    root = _parse_tree(text)
    scope = _Scope(text)
    body = _children(root, "body")[0]
    blocks = _children(body, "block")
    for block in blocks:
        scope.declare(block)
    file = Block(type="", labels=(), line=1)
    _fill(file, body, scope, skip=frozenset({"variable", "variables", "locals"}))
    return file


class _Scope:
    """Evaluates expressions of one text; locals are evaluated when first used."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._variables: dict[str, Any] = {}
        self._unset: set[str] = set()
        self._locals: dict[str, Node] = {}
        self._evaluating: list[str] = []

    def declare(self, block: "Node") -> None:
        """Remember what a `variable`, `variables` or `locals` block declares."""
        kind, *labels = _names(block)
        attributes = {_names(node)[0]: node for node in _children(_body(block), "attribute")}
        if kind == "locals":
            self._locals |= {name: node.children[-1] for name, node in attributes.items()}  # type: ignore[misc]
        elif kind == "variables":
            self._variables |= {name: self.evaluate(node.children[-1]) for name, node in attributes.items()}
        elif kind == "variable" and labels:
            if "default" in attributes:
                self._variables[labels[0]] = self.evaluate(attributes["default"].children[-1])
            else:
                self._unset.add(labels[0])

    def evaluate(self, node: Any) -> Any:
        """Return the value of an expression: text, int, float, bool, None, list or dict."""
        handler = getattr(self, f"_{node.data}", None)
        if handler is None:
            kind = str(node.data).replace("_", " ")
            raise HclError(_line(node), f"this expression is not supported here ({kind}){_RENDER}")
        try:
            return handler(node)
        except (ValueError, TypeError, ArithmeticError, LookupError) as error:
            raise HclError(_line(node), str(error)) from error

    # Each method below is named after the grammar rule it evaluates.

    def _expr_term(self, node: "Node") -> Any:
        inner = _nodes(node)
        if len(inner) != 1:
            raise HclError(_line(node), f"this expression is not supported here{_RENDER}")
        return self.evaluate(inner[0])

    def _int_lit(self, node: "Node") -> int:
        return int(_token(node))

    def _float_lit(self, node: "Node") -> int | float:
        number = float(_token(node))
        return int(number) if number.is_integer() else number

    def _literal_value(self, node: "Node") -> bool | None:
        return {"true": True, "false": False, "null": None}[_token(node)]

    def _tuple(self, node: "Node") -> list[Any]:
        return [self.evaluate(item) for item in _nodes(node)]

    def _object(self, node: "Node") -> dict[str, Any]:
        result: dict[str, Any] = {}
        for element in _children(node, "object_elem"):
            key_node, value_node = _nodes(element)
            key = _nodes(key_node)[0]
            bare = key.data == "expr_term" and _nodes(key)[:1] and _nodes(key)[0].data == "identifier"
            name = _names(_nodes(key)[0])[0] if bare else as_text(self.evaluate(key))
            result[name] = self.evaluate(value_node)
        return result

    def _conditional(self, node: "Node") -> Any:
        condition, yes, no = _nodes(node)
        value = self.evaluate(condition)
        if not isinstance(value, bool):
            raise HclError(_line(node), "the condition must be true or false")
        return self.evaluate(yes if value else no)

    def _unary_op(self, node: "Node") -> Any:
        return unary(str(node.children[0]), self.evaluate(_nodes(node)[0]))

    def _binary_op(self, node: "Node") -> Any:
        left, term = _nodes(node)
        operator, right = _nodes(term)
        return binary(_token(operator), self.evaluate(left), self.evaluate(right))

    def _function_call(self, node: "Node") -> Any:
        name = _names(node)[0]
        if name not in FUNCTIONS:
            raise HclError(_line(node), f"the function {name} is not supported here{_RENDER}")
        return FUNCTIONS[name](
            *[self.evaluate(item) for part in _children(node, "arguments") for item in _nodes(part)]
        )

    def _identifier(self, node: "Node") -> Any:
        return self._reference(node)

    def _get_attr_expr_term(self, node: "Node") -> Any:
        return self._reference(node)

    def _index_expr_term(self, node: "Node") -> Any:
        return self._reference(node)

    def _reference(self, node: "Node") -> Any:
        """Follow `var.name.key[0]`; anything that does not start at `var` or `local` stays text."""
        steps: list[Any] = []
        current = node
        while current.data in {"get_attr_expr_term", "index_expr_term"}:
            current, step = _nodes(current)
            steps.insert(0, self._step(step))
            current = _unwrap(current)
        if current.data != "identifier":
            value = self.evaluate(current)
        elif (root := _names(current)[0]) not in _SCOPES:
            return "${" + self._source(node) + "}"
        elif not steps:
            raise HclError(_line(node), f"{root} needs a name, as in {root}.name")
        else:
            value = self._named(root, str(steps.pop(0)), _line(node))
        for step in steps:
            value = value[step if isinstance(value, dict) else int(step)]
        return value

    def _step(self, node: "Node") -> Any:
        if node.data == "braces_index":
            return self.evaluate(_nodes(node)[0])
        names = [str(child.children[0]) for child in _nodes(node)]
        return names[0] if names else int(str(node.children[-1]))

    def _named(self, root: str, name: str, line: int) -> Any:
        if root == "var":
            if name in self._unset:
                raise HclError(line, f'variable "{name}" has no default value{_RENDER} with -var')
            if name not in self._variables:
                raise HclError(line, f'there is no variable "{name}"')
            return self._variables[name]
        if name not in self._locals:
            raise HclError(line, f'there is no local value "{name}"')
        if name in self._evaluating:
            raise HclError(line, f'the local value "{name}" refers to itself')
        self._evaluating.append(name)
        try:
            return self.evaluate(self._locals[name])
        finally:
            self._evaluating.pop()

    def _string(self, node: "Node") -> Any:
        parts = _children(node, "string_part")
        # "${x}" alone keeps the type of x; anything more is text.
        if len(parts) == 1 and (inner := _nodes(parts[0])) and inner[0].data == "interpolation":
            return self._interpolation(inner[0])
        return "".join(self._string_part(part) for part in parts)

    def _string_part(self, node: "Node") -> str:
        inner = _nodes(node)
        if inner:
            return as_text(self.evaluate(inner[0]))
        token = str(node.children[0])
        # $${ and %%{ stand for themselves with one character less.
        return _unescape(token[1:] if token.startswith(("$${", "%%{")) else token, _line(node))

    def _interpolation(self, node: "Node") -> Any:
        expression = _nodes(node)[0]
        value = self.evaluate(expression)
        if isinstance(value, str) and value == "${" + self._source(expression).strip() + "}":
            return self._source(node)  # left to run time with the blanks inside its braces
        return value

    def _heredoc_template(self, node: "Node") -> str:
        return self._heredoc(node, trim=False)

    def _heredoc_template_trim(self, node: "Node") -> str:
        return self._heredoc(node, trim=True)

    def _heredoc(self, node: "Node", *, trim: bool) -> str:
        lines = _token(node).replace("\r\n", "\n").split("\n")[1:]
        while lines and not lines[-1].strip():
            lines.pop()
        lines.pop()  # the closing marker
        if trim:
            indents = [len(line) - len(line.lstrip()) for line in lines if line.strip()]
            lines = [line[min(indents, default=0) :] for line in lines]
        text = "".join(line + "\n" for line in lines)
        return "".join(self._template_parts(text, _line(node) + 1))

    def _template_parts(self, text: str, line: int) -> Iterator[str]:
        position = 0
        for mark in re.finditer(r"\$\$\{|%%\{|\$\{|%\{", text):
            if mark.start() < position:
                continue  # inside the expression that was just evaluated
            yield text[position : mark.start()]
            position = mark.end()
            if mark.group() in {"$${", "%%{"}:
                yield mark.group()[1:]
            elif mark.group() == "%{":
                raise HclError(line + text.count("\n", 0, mark.start()), f"%{{ }} is not supported{_RENDER}")
            else:
                position = _closing_brace(text, position)
                source = text[mark.end() : position - 1]
                yield self._embedded(source, line + text.count("\n", 0, mark.start()))
        yield text[position:]

    def _embedded(self, source: str, line: int) -> str:
        """Evaluate an expression inside a heredoc; the parser hands those over as plain text."""
        try:
            tree = _parse_tree(f'x = "${{{source}}}"')
            inner = _Scope(f'x = "${{{source}}}"')
            inner._variables, inner._unset, inner._locals = self._variables, self._unset, self._locals
            return as_text(inner.evaluate(_children(_children(tree, "body")[0], "attribute")[0].children[-1]))
        except HclError as error:
            raise HclError(line, error.message) from error

    def _source(self, node: "Node") -> str:
        return self._text[node.meta.start_pos : node.meta.end_pos]


def _parse_tree(text: str) -> "Node":
    try:
        import hcl2  # noqa: PLC0415 - an optional dependency, and a slow import
        from lark.exceptions import UnexpectedInput  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(_INSTALL, name=error.name) from error
    try:
        return hcl2.parses_to_tree(text)
    except UnexpectedInput as error:
        shown = error.get_context(text + "\n", span=30).strip("\n")
        raise HclError(error.line, f"this is not valid HCL:\n{shown}") from error


def _fill(block: Block, body: "Node", scope: _Scope, *, skip: frozenset[str] = frozenset()) -> None:
    for node in _nodes(body):
        if node.data == "attribute":
            name = _names(node)[0]
            if name in block.attributes:
                raise HclError(_line(node), f'the argument "{name}" is set twice')
            block.attributes[name] = scope.evaluate(node.children[-1])
            block.lines[name] = _line(node)
        elif node.data == "block":
            kind, *labels = _names(node)
            if kind in skip:
                continue
            inner = Block(type=kind, labels=tuple(labels), line=_line(node))
            _fill(inner, _body(node), scope)
            block.blocks.append(inner)


def _nodes(node: "Node") -> list["Node"]:
    """Children that are rules, without comments and line ends."""
    rules = [child for child in node.children if not isinstance(child, str)]
    return [child for child in rules if child.data != "new_line_or_comment"]


def _children(node: "Node", rule: str) -> list["Node"]:
    return [child for child in _nodes(node) if child.data == rule]


def _body(block: "Node") -> "Node":
    return _children(block, "body")[0]


def _names(node: "Node") -> list[str]:
    """The leading identifiers and quoted labels of a block, attribute or call."""
    if node.data == "identifier":
        return [_token(node)]
    names = []
    for child in _nodes(node):
        if child.data in {"identifier", "keyword", "literal_value"}:
            names.append(_token(child))
        elif child.data == "string" and node.data == "block":
            names.append("".join(str(part.children[0]) for part in _children(child, "string_part")))
        else:
            break
        if node.data != "block":
            break
    return names


def _unwrap(node: "Node") -> "Node":
    while node.data == "expr_term" and len(_nodes(node)) == 1:
        node = _nodes(node)[0]
    return node


def _token(node: "Node") -> str:
    return str(node.children[0])


def _line(node: "Node") -> int:
    return int(getattr(node.meta, "line", 0))


def _unescape(text: str, line: int) -> str:
    def replace(match: re.Match[str]) -> str:
        code = match.group(1)
        if len(code) > 1:
            return chr(int(code[1:], 16))
        if code not in _ESCAPES:
            raise HclError(line, f'"\\{code}" is not a valid escape sequence')
        return _ESCAPES[code]

    return _ESCAPE.sub(replace, text)


def _closing_brace(text: str, position: int) -> int:
    """Return the position behind the brace that closes the interpolation starting at `position`."""
    depth, in_string = 1, False
    while position < len(text) and depth:
        character = text[position]
        if character == "\\" and in_string:
            position += 1
        elif character == '"':
            in_string = not in_string
        elif character in "{}" and not in_string:
            depth += 1 if character == "{" else -1
        position += 1
    return position
