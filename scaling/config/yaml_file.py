"""YAML files read within bounds: plain values, the line of each, and one sentence for what is not.

PyYAML alone follows a document wherever it leads: aliases that refer to themselves never end, a few
lines of aliases stand for more values than a machine holds, and deep nesting ends Python's stack.
Here a document is measured as it is parsed, before any value of it is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from scaling.errors import UserError

MAX_BYTES = 1_000_000
MAX_VALUES = 20_000  # keys, items and values, each alias counted as all that it stands for
MAX_DEPTH = 40
MAX_DIGITS = 300  # a float holds no more before its point
MERGE = "tag:yaml.org,2002:merge"
INT = "tag:yaml.org,2002:int"
STR = "tag:yaml.org,2002:str"


def read(path: Path) -> tuple[Any, dict[tuple[Any, ...], int]]:
    """A YAML file's value, and the 1-based line of every key and list item in it.

    Raises UserError for a file that cannot be read, is not YAML or is out of bounds.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a YAML text file ({error})") from None
    if len(content) > MAX_BYTES:
        raise UserError(
            f"{path}: more than {MAX_BYTES:,} bytes; configurations are short texts, is this one?"
        )
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as a YAML text file ({error})") from None
    try:
        return parse(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise UserError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    except yaml.reader.ReaderError as error:  # a character that YAML does not allow, NUL say
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{path}:{line}: not valid YAML: {error.reason}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def parse(text: str) -> tuple[Any, dict[tuple[Any, ...], int]]:
    """As `read`, of a text. Raises yaml.YAMLError."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, {(): 1}
        loader.measure(node)
        value = loader.construct_document(node)
        lines: dict[tuple[Any, ...], int] = {}
        _lines(node, (), lines)
        return _apart(value), lines
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `2e11` as text; a budget is a number. Duplicate keys are mistakes."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        peek: Callable[[], yaml.Event] = self.peek_event
        event = peek()
        self._depth += 1
        self._values += 1
        if self._depth > MAX_DEPTH:
            raise _error(f"nested more than {MAX_DEPTH} deep", event)
        if self._values > MAX_VALUES:
            raise _error(_TOO_MANY, event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, AttributeError) as error:  # PyYAML's own, of scalars
            kind = node.tag.rpartition(":")[2]
            raise _error(f"'{node.value}' is not a valid {kind} ({error})", node) from None

    def measure(self, root: Any) -> None:
        """Raise for what must not be constructed: loops, aliases without bound, strange keys."""
        sizes: dict[int, int] = {}  # of the nodes that are measured, by identity
        above: set[int] = set()  # those that hold the one being measured

        def size(node: Any) -> int:
            if id(node) in above:
                raise _error("it contains itself (an alias inside what it stands for)", node)
            if id(node) not in sizes:
                above.add(id(node))
                total = 1
                if isinstance(node, yaml.MappingNode):
                    _check_keys(node)
                    total += sum(1 + size(value) for _, value in node.value)
                elif isinstance(node, yaml.SequenceNode):
                    total += sum(map(size, node.value))
                else:
                    _check_number(node)
                above.discard(id(node))
                sizes[id(node)] = total
            if sizes[id(node)] > MAX_VALUES:
                raise _error(_TOO_MANY, node)
            return sizes[id(node)]

        size(root)


_TOO_MANY = f"more than {MAX_VALUES:,} values (an alias counts as all that it stands for)"
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def _error(problem: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, at.start_mark)


def _check_keys(node: Any) -> None:
    """Keys are text, each once; `<<` may come more than once."""
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _error("a key must be one word, not a list or a mapping", key)
        if key.tag == MERGE:
            continue
        if key.tag != STR:  # 1, null, yes
            kind = key.tag.rpartition(":")[2]
            raise _error(f"key '{key.value}' is read as {kind}, not as text; put it in quotes", key)
        if key.value in seen:
            raise _error(f"key '{key.value}' appears twice", key)
        seen.add(key.value)


def _check_number(node: Any) -> None:
    """YAML 1.1 knows integers that nobody means: 010 is eight, 1:30 is ninety."""
    if node.tag != INT:
        return
    digits = node.value.lstrip("+-").replace("_", "")
    if len(digits) > MAX_DIGITS:
        raise _error(f"a number of {len(digits):,} digits; {MAX_DIGITS} are the most", node)
    if ":" in digits:
        raise _error(f"'{node.value}' is a number to base 60; write it out, or in quotes", node)
    if re.fullmatch("0[0-9]+", digits):
        raise _error(
            f"'{node.value}' is an octal number; write it without the leading zero, or in quotes",
            node,
        )


def _lines(node: Any, path: tuple[Any, ...], lines: dict[tuple[Any, ...], int]) -> None:
    """Of a constructed document: merges are then part of the mappings that asked for them."""
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, key.value)
            lines[inner] = key.start_mark.line + 1
            _lines(value, inner, lines)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            _lines(value, (*path, i), lines)


def _apart(value: Any) -> Any:
    """The same value, in which no two places share a list or a mapping, as aliases do."""
    if isinstance(value, dict):
        return {k: _apart(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_apart(v) for v in value]
    return value
