"""The arguments of a model's constructor as options: their types come from annotations, their values as text."""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from offline_infer.errors import UsageError

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True)
class ConstructorOption:
    """One argument of a model's constructor.

    Attributes:
        name: of the argument.
        kind: ``int``, ``float``, ``bool``, ``str`` or ``json`` (anything else, written as JSON).
        required: it has no default.
        default: of the constructor.
        optional: ``none`` stands for None.
        choices: the legal values; empty: any of its kind.
    """

    name: str
    kind: str
    required: bool
    default: Any = None
    optional: bool = False
    choices: tuple[Any, ...] = ()

    def parse(self, text: str) -> Any:
        """A value from the command line.

        Raises:
            UsageError: not a value of this kind, or none of the choices.
        """
        if self.optional and text.lower() == "none":
            return None
        try:
            value = self._value(text)
            if self.choices and value not in self.choices:
                raise ValueError(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"model option {self.name}={text!r}: expected {self.legal}") from error
        return value

    @property
    def legal(self) -> str:
        """Which values are legal, in words."""
        if self.choices:
            told = " or ".join(map(str, self.choices))
        elif self.kind == "json":
            told = "a value written as JSON, such as [1, 2]"
        else:
            told = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}[self.kind]
        return f"{told}, or none" if self.optional else told

    def described(self) -> str:
        """One line: its name, what is legal, and its default."""
        return f"{self.name}: {self.legal} ({'required' if self.required else f'default {self._shown()}'})"

    def _value(self, text: str) -> Any:
        if self.kind == "bool":
            if text.lower() not in (*_TRUE, *_FALSE):
                raise ValueError(text)
            return text.lower() in _TRUE
        if self.kind == "json":
            return json.loads(text)
        return {"int": int, "float": float, "str": str}[self.kind](text)

    def _shown(self) -> str:
        if isinstance(self.default, bool) or self.default is None:
            return str(self.default).lower()
        return str(self.default)


def constructor_options(cls: type) -> tuple[ConstructorOption, ...]:
    """The arguments of a class's constructor, in order; ``*args`` and ``**kwargs`` are left out."""
    try:
        hints = typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    except Exception:  # annotations may name what is not there at run time
        hints = {}
    options = []
    for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]:  # type: ignore[misc]
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        missing = parameter.default is parameter.empty
        default = None if missing else parameter.default
        annotation = hints.get(parameter.name, type(default) if default is not None else str)
        kind, optional, choices = _kind(annotation)
        options.append(ConstructorOption(parameter.name, kind, missing, default, optional, choices))
    return tuple(options)


def constructor_arguments(cls: type, given: Mapping[str, str]) -> dict[str, Any]:
    """Arguments for a class's constructor from ``name=value`` texts.

    Raises:
        UsageError: an unknown name, a wrong value, or a required argument that was not given.
    """
    options = {option.name: option for option in constructor_options(cls)}
    listed = "; ".join(option.described() for option in options.values()) or "none"
    unknown = sorted(set(given) - set(options))
    if unknown:
        raise UsageError(f"{cls.__name__} has no option {', '.join(unknown)}; it has: {listed}")
    missing = [option.name for option in options.values() if option.required and option.name not in given]
    if missing:
        raise UsageError(f"{cls.__name__} needs the options {', '.join(missing)}; it has: {listed}")
    return {name: options[name].parse(text) for name, text in given.items()}


def _kind(annotation: Any) -> tuple[str, bool, tuple[Any, ...]]:
    """(kind of option, whether None is legal, the choices) of an annotation."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        real = [argument for argument in arguments if argument is not type(None)]
        kind, _, choices = _kind(real[0]) if len(real) == 1 else ("json", False, ())
        return kind, len(real) < len(arguments), choices
    if typing.get_origin(annotation) is typing.Literal and len({type(value) for value in arguments}) == 1:
        return _kind(type(arguments[0]))[0], False, arguments
    return {bool: "bool", int: "int", float: "float", str: "str"}.get(annotation, "json"), False, ()
