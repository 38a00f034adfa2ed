"""The commands of `winnow`: a new one is a file in `commands/` and a row here, in the order of `winnow --help`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from benchmark.cli.verb import Verb


@dataclass(frozen=True)
class Command:
    """A command: its name, which is that of its file, and its lines in `winnow --help`.

    The file of one that takes key=value options defines `VERB` (a `Verb`), that of another `main`, from its arguments
    to the exit code.
    """

    name: str
    usage: tuple[tuple[str, str], ...]  # what follows the name, and what that does
    takes_options: bool = False

    @property
    def verb(self) -> Verb[Any]:
        """Load a command that takes key=value options."""
        found: Verb[Any] = import_module(f"benchmark.cli.commands.{self.name}").VERB
        return found

    @property
    def main(self) -> Callable[[list[str]], int]:
        """Load any other command."""
        found: Callable[[list[str]], int] = import_module(f"benchmark.cli.commands.{self.name}").main
        return found


_ROWS = (
    Command("run", (("", "everything: pool, filter, training, evaluation, a table (default: embedded pool)"),), True),
    Command("filter", (("", "choose a subset of the pool"),), True),
    Command("train", (("", "train on the subset of an experiment"),), True),
    Command("evaluate", (("", "score an experiment's checkpoints, or any open_clip model"),), True),
    Command("reshard", (("", "copy a subset out of a pool's tars, in DataComp's layout"),), True),
    Command("report", (("", "make a page that shows what an experiment kept and dropped"),), True),
    Command(
        "pool",
        (
            ("build", "generate an embedded pool"),
            ("index|check DIR", "find every sample of a pool; check a pool"),
            ("sample DIR", "make a smaller pool of some of a pool's rows"),
            ("import", "make a pool of existing tars and parquet files"),
        ),
    ),
    Command(
        "subset",
        (
            ("info FILE", "show what is in a subset file"),
            ("and|or|minus|restrict|overlap A B ...", "combine or compare subset files"),
        ),
    ),
    Command("list", (("filters|tasks|scales|checkpoints", "list what there is"),)),
    Command(
        "leaderboard",
        (
            ("table", "print the board"),
            ("agreement", "compare the board's order with DataComp's published scores"),
            ("compare A [B]", "print the scores of a folder, results file or released checkpoint, beside another's"),
        ),
    ),
)
COMMANDS = {command.name: command for command in _ROWS}
VERB_NAMES = [command.name for command in _ROWS if command.takes_options]
