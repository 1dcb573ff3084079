"""The base of every parameter block."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Block(BaseModel):
    """A block of ``params.yaml``: unknown keys are refused, values are frozen after the check.

    Numeric strings are read as numbers where the field is a number (DVC hands ``1e-05`` over as text); booleans, words
    and what is not finite are not. Every field carries a description, which becomes its comment in ``params.yaml``.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _booleans_are_no_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[info.field_name].annotation if info.field_name else None
        if isinstance(value, bool) and annotation in (int, float):
            raise ValueError("expected a number, got a boolean")
        if annotation is bool and not isinstance(value, bool):
            raise ValueError("expected true or false")
        return value
