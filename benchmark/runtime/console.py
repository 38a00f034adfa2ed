"""What is said to the user: progress, warnings, and which rank speaks."""

from __future__ import annotations

import os
import sys

from benchmark.runtime.errors import UserError


def rank_of_process() -> tuple[int, int]:
    """Return this process's rank, and the number of ranks that torchrun started together: (0, 1) without it."""
    size = number_of_environment("WORLD_SIZE", 1)
    return (number_of_environment("RANK", 0), size) if size > 1 and "RANK" in os.environ else (0, 1)


def number_of_environment(name: str, otherwise: int) -> int:
    """Return the whole number that a variable of the environment holds; raises UserError where it holds another."""
    text = os.environ.get(name, "")
    if text and not (text.isascii() and text.isdecimal()):
        raise UserError(f"the variable {name} of the environment is {text!r}, no whole number", code="environment")
    return int(text) if text else otherwise


def say(message: str) -> None:
    """Tell the user one line of progress; of several ranks only the first speaks."""
    if rank_of_process()[0] == 0:
        print(message, flush=True)


def warn(message: str) -> None:
    """Tell the user something that needs attention but does not stop the work."""
    print(f"warning: {message}", file=sys.stderr, flush=True)
