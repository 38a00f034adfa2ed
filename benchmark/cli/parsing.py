"""The parser of commands that take flags."""

from __future__ import annotations

import argparse
from typing import Any

from benchmark.runtime.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one sentence with a code, like ours."""

    def error(self, message: str) -> Any:
        """Raise UserError instead of printing and leaving."""
        raise UserError(f"{message}; see {self.prog} --help", code="usage")
