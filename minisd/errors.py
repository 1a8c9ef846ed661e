"""The errors a caller can meet. Every message says what came, what was expected and what to do.

`MinisdError` is the common root; nothing else escapes the library on bad input. Messages quote foreign text
(tensor names, prompts, file contents) through `quoted`, so a hostile file cannot write control characters to
a terminal.
"""

from __future__ import annotations


class MinisdError(Exception):
    """Root of all errors that minisd raises on purpose."""


class CheckpointError(MinisdError):
    """A file cannot be read as what it claims to be, or does not fit the model it is meant for."""


class CheckpointWarning(UserWarning):
    """A file can be read, but looks damaged."""


class RequestError(MinisdError, ValueError):
    """A field of a Request has a wrong value. `field` names it."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class PlanError(MinisdError):
    """What was asked for by name cannot be done on this machine."""


class NumericalError(MinisdError):
    """A network gave a value that is not finite; the message names the stage and step."""


class ImageError(MinisdError, ValueError):
    """An image file or array cannot be used."""


class Cancelled(MinisdError):
    """The caller's cancel token was set; the engine is unchanged and usable."""


def quoted(text: object, limit: int = 120) -> str:
    """`text` in quotes with control characters escaped, cut to `limit` characters."""
    shown = ascii(str(text))
    return shown if len(shown) <= limit else shown[: limit - 4] + "...'"


def listed(names: list[str] | tuple[str, ...], most: int = 10) -> str:
    """The first `most` names and the count of all: `'a', 'b' (12 in all)`."""
    head = ", ".join(quoted(n) for n in names[:most])
    return head if len(names) <= most else f"{head}, ... ({len(names)} in all)"
