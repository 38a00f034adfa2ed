"""What a user can mend: errors that print as one sentence, and are known to programs and tests by a short code."""

from __future__ import annotations

from typing import ClassVar


class UserError(ValueError):
    """Something that the user can mend: a wrong option, file, folder or setting.

    The message says what was found, what would be right, and where. `code` is a short slug, such as
    `pool-not-found`, that stays the same when the words change; without one it is that of the class.
    """

    default_code: ClassVar[str] = "invalid-input"
    code: str

    def __init__(self, message: object = "", *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code or self.default_code

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""  # a KeyError would show the message in quotes


class NotFoundError(UserError, FileNotFoundError):
    """A file or folder that is needed is not there."""

    default_code = "not-found"


class UnknownNameError(UserError, KeyError):
    """A name that nothing has; the message names the nearest one."""

    default_code = "unknown-name"


def one_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its type's name."""
    return (str(error) or type(error).__name__).splitlines()[0]
