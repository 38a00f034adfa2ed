"""The table of commands: every file of `cli/commands` is in it, and what each declares can be composed."""

from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from benchmark.cli import commands
from benchmark.cli.command_table import COMMANDS, VERB_NAMES
from benchmark.cli.help import winnow_help
from benchmark.cli.options import describe_options, option_names


def test_every_command_is_a_file_and_a_row_of_the_table():
    files = {path.stem for path in Path(commands.__path__[0]).glob("*.py")} - {"__init__"}
    assert files == set(COMMANDS) and set(VERB_NAMES) < files
    for name in COMMANDS:
        assert f"\n  winnow {name}" in winnow_help()


@pytest.mark.parametrize("name", VERB_NAMES)
def test_every_option_of_a_verb_has_a_help_text(name):
    verb = COMMANDS[name].verb
    assert is_dataclass(verb.config)
    described = describe_options(verb.config)
    assert [option for option, _, _ in described] == option_names(verb.config) == [f.name for f in fields(verb.config)]
    assert all(text for _, _, text in described)
