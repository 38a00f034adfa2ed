"""The command line: `winnow VERB ...`. What a user can mend prints as one sentence; exit codes mean what they say."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmark import __version__
from benchmark.runtime.console import rank_of_process
from benchmark.runtime.errors import UnknownNameError, UserError
from benchmark.runtime.failures import EXIT_PARTS, EXIT_USER, reported
from benchmark.runtime.names import nearest_name

EXIT_SWEEP = EXIT_PARTS
ON_RANKS = ("train", "evaluate")
__all__ = ["EXIT_SWEEP", "EXIT_USER", "entry_point", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return reported("winnow", lambda: _dispatch(arguments), arguments).exit_code


def entry_point() -> None:
    """Run as the installed command `winnow`."""
    sys.exit(main())


def _dispatch(arguments: list[str]) -> int:
    from benchmark.cli.command_table import COMMANDS
    from benchmark.cli.help import winnow_help

    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(winnow_help(), end="")
        return 0
    name, rest = arguments[0], arguments[1:]
    if rank_of_process()[1] > 1 and name not in ON_RANKS:
        raise UserError(
            f"winnow {name} does not work on ranks; run it once, without torchrun (only {' and '.join(ON_RANKS)} do)",
            code="not-on-ranks",
        )
    if name == "--version":
        print(f"winnow {__version__}")
        return 0
    if name not in COMMANDS:
        known = list(COMMANDS)
        raise UnknownNameError(
            f"unknown verb {name!r}.{nearest_name(name, known)} Verbs: {', '.join(known)}.", code="unknown-verb"
        )
    if COMMANDS[name].takes_options:
        from benchmark.cli.composing import HydraCommand

        return HydraCommand.parse(name, rest).execute()
    return COMMANDS[name].main(rest)
