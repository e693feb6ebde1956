"""Check JSON values by the types and bounds that a dataclass declares at its fields. One error names one field."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from ...errors import BatchNormError

Kind = TypeVar("Kind")
LONGEST = 60  # characters of a value in a message
_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a string", Path: "a path"}


def checked(kind: type[Kind], values: object, place: str, name: Callable[[str], str] = str) -> Kind:
    """Return a `kind`, a dataclass, made of JSON values. A string is no number, and a bool no integer.

    Fields that `kind` does not have are ignored.

    Arguments:
        kind: a dataclass whose fields declare types and bounds.
        values: what `json.loads` returned.
        place: where the values are from, such as a file and its line. "" for the command line.
        name: returns how a message writes a field.

    Raises:
        BatchNormError: the first field that is missing, of another type or out of bounds.
    """
    before = f"{place}: " if place else ""
    try:
        return _adapter(kind).validate_json(json.dumps(values, default=repr), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    except RecursionError as error:
        raise BatchNormError(f"{before}the values are nested too deeply") from error
    if not first["loc"] or not isinstance(values, dict):
        fields = ", ".join(_hints(kind))
        raise BatchNormError(f"{place or 'the value'} must be a JSON object with {fields}; got {shown(values)}")
    field = str(first["loc"][0])
    if field not in values:
        raise BatchNormError(f"{before}{name(field)} is missing; wanted {_wanted(_hints(kind)[field])}")
    wanted = _wanted(_hints(kind)[field])
    # Nobody can type null.
    wanted = wanted if place else wanted.removesuffix(" or null")
    raise BatchNormError(f"{before}{name(field)} must be {wanted}; got {shown(values[field])}")


def shown(value: object) -> str:
    """Return a value as JSON writes it, cut to the length that fits a message."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


@lru_cache
def _adapter(kind: type[Kind]) -> TypeAdapter[Kind]:
    return TypeAdapter(kind)


@lru_cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _wanted(annotation: Any) -> str:
    """Return the type and the bounds of a field in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return " ".join(map(str, (_wanted(parts[0]), *annotation.__metadata__)))
    if origin in (Union, UnionType):
        return " or ".join("null" if part is NoneType else _wanted(part) for part in parts)
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin in (list, tuple):
        return f"a list, each {_wanted(parts[0])}"
    return _NAMES[annotation]
