"""Errors that name the file or parameter, the cause and the cure."""

from __future__ import annotations


class AnomdinoError(Exception):
    """Base of every error that a user can cause or cure.

    Args:
        what: The file, folder or parameter concerned.
        cause: What is wrong with it, with the offending value.
        cure: What the user can do about it; empty when nothing better than the cause can be said.
    """

    exit_code = 2

    def __init__(self, what: object, cause: str, cure: str = "") -> None:
        self.what = str(what)
        self.cause = cause
        self.cure = cure
        super().__init__(self.what, cause, cure)

    def __str__(self) -> str:
        text = f"{self.what}: {self.cause}"
        return f"{text}\n  -> {self.cure}" if self.cure else text


class DataError(AnomdinoError):
    """An input file or folder cannot be used."""


class ConfigError(AnomdinoError):
    """A parameter is unknown, of the wrong type or out of range."""


class CheckpointError(AnomdinoError):
    """A model file is missing, damaged, unsafe to load or of another architecture."""


class BackendMissing(AnomdinoError):
    """An optional package or a device is not there."""


class ProtocolError(AnomdinoError):
    """Something would break the evaluation protocol, such as training on evaluation data."""


class TrainingError(AnomdinoError):
    """Training had to stop, for example at a loss that is not finite."""


class DiskError(AnomdinoError):
    """The disk is full or not writable."""

    exit_code = 3
