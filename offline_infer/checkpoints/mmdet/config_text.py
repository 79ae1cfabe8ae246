"""mmdetection's configurations, which are Python files, read as data: parsed, never executed.

Accepted are assignments of literals, lists, tuples, dictionaries and ``dict(...)`` calls, and names assigned further up
(``**img_norm_cfg`` too). That covers what mmdetection stores in a checkpoint's ``meta`` and files without ``_base_``.
Statements that cannot be read this way are skipped, and the name they assign counts as absent.
"""

from __future__ import annotations

import ast
from typing import Any

from offline_infer.errors import CheckpointError

MAX_CHARACTERS = 1 << 20
"""Longest accepted text; published configurations have some ten thousand characters."""


class _Unreadable(Exception):
    """An expression that is more than data."""


def parse_config(text: str, origin: str) -> dict[str, Any]:
    """The variables a configuration assigns.

    Args:
        text: Python source.
        origin: how messages call it.

    Raises:
        CheckpointError: not Python, too long, or built on other files (``_base_``).
    """
    if len(text) > MAX_CHARACTERS:
        raise CheckpointError(f"{origin} has {len(text)} characters, more than the {MAX_CHARACTERS} accepted")
    try:
        tree = ast.parse(text)
        found: dict[str, Any] = {}
        for statement in tree.body:
            _assign(statement, found)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"{origin} is not a Python configuration: {error}") from error
    if "_base_" in found:
        raise CheckpointError(
            f"{origin} is built on other files (_base_); give the complete configuration, as mmdetection's "
            "tools/print_config.py prints it, or a JSON file"
        )
    return found


def _assign(statement: ast.stmt, found: dict[str, Any]) -> None:
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return
    target = statement.targets[0]
    if not isinstance(target, ast.Name):
        return
    try:
        found[target.id] = _value(statement.value, found)
    except _Unreadable:
        found.pop(target.id, None)


def _value(node: ast.expr, known: dict[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name) and node.id in known:
        return known[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = _value(node.operand, known)
        if isinstance(number, (int, float)):
            return -number
    if isinstance(node, ast.List):
        return [_value(item, known) for item in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_value(item, known) for item in node.elts)
    if isinstance(node, ast.Dict):
        return _pairs([(None if key is None else _value(key, known), item) for key, item in _items(node)], known)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return _pairs([(keyword.arg, keyword.value) for keyword in node.keywords], known)
    raise _Unreadable


def _items(node: ast.Dict) -> list[tuple[ast.expr | None, ast.expr]]:
    return list(zip(node.keys, node.values, strict=True))


def _pairs(pairs: list[tuple[Any, ast.expr]], known: dict[str, Any]) -> dict[Any, Any]:
    """A dictionary of key-value pairs; a key of None stands for ``**value``."""
    result: dict[Any, Any] = {}
    for key, node in pairs:
        value = _value(node, known)
        if key is None:
            if not isinstance(value, dict):
                raise _Unreadable
            result.update(value)
        elif isinstance(key, (str, int, float, tuple)):
            result[key] = value
        else:
            raise _Unreadable
    return result
