"""Pydantic's reports as one clear line: what was given, what is allowed, the nearest name."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from sffbench.errors import InputError, unknown


def from_validation(error: ValidationError, model: type[BaseModel], where: str) -> InputError:
    """One problem of `error` as one line; an unknown key comes first and offers the nearest."""
    # A misspelt key is also a missing one: the misspelling is the better news.
    first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        allowed = list(_model_at(model, first["loc"][:-1]).model_fields)
        return unknown(f"key in {where}", str(first["loc"][-1]), allowed)
    if first["type"] == "missing":
        return InputError(f"{where}: {place!r} is missing")
    message = first["msg"].removeprefix("Value error, ")
    given = f" = {first['input']!r}" if place and _is_short(first["input"]) else ""
    return InputError(f"{where}: {place}{given}: {message}" if place else f"{where}: {message}")


def _model_at(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    for part in location:
        field = model.model_fields.get(str(part))
        inner = None if field is None else _nested_model(field.annotation)
        model = inner or model
    return model


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _is_short(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool)) and len(repr(value)) < 60
