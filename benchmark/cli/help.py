"""The texts of `winnow --help` and `winnow VERB --help`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.cli.command_table import COMMANDS
from benchmark.cli.options import describe_options, takes_filters

if TYPE_CHECKING:
    from benchmark.runtime.strategies import Strategy

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"

HEAD = """\
winnow: a benchmark for data filtering. Training and evaluation are fixed; you bring the rule that chooses the data.

"""
TAIL = """
`winnow VERB --help` explains a verb. run, filter, train, evaluate, reshard and report take key=value options, and
sweep over several values with -m:
  winnow run filters=clip_score filters.clip_score.fraction=0.2 seeds=[0,1,2]
  winnow run -m filters=no_filter,clip_score,random
Exit codes: 0: done; 1: a check found problems; 2: an error that you can fix, reported in one sentence with its code in
brackets, such as [pool-not-found]; 3: jobs of a sweep failed; 70: an internal error (a bug in winnow), whose traceback
is written to a file; 128 + n: ended by signal n (130: Ctrl-C). WINNOW_TRACEBACK=1 shows every failure's traceback.
"""


def winnow_help() -> str:
    """Return the text of `winnow --help`."""
    lines = []
    for command in COMMANDS.values():
        for arguments, text in command.usage:
            usage = f"winnow {command.name} {arguments}".rstrip()
            lines.append(f"  {usage:<33} {text}" if len(usage) <= 33 else f"  {usage}   {text}")
    return HEAD + "\n".join(lines) + "\n" + TAIL


def verb_help(verb: str) -> str:
    """Return the text of the help of a command with key=value options: the options, and the filters it may use."""
    from benchmark.selection.rules import known_strategies

    config = COMMANDS[verb].verb.config
    lines = [(config.__doc__ or "").strip(), "", f"  winnow {verb} key=value ...      -m sweeps over a,b,c", ""]
    width = max(len(name) for name, _, _ in describe_options(config))
    for name, default, text in describe_options(config):
        lines.append(f"  {name:<{width}} {text}" + (f" (default: {default})" if default else ""))
    if takes_filters(config):
        default = ",".join(default_filters(verb))
        lines += [
            f"  {'filters':<{width}} the strategy: a name or a list of names (default: {default})",
            "",
            "Filters:",
        ]
        lines += strategy_lines(known_strategies())
    return "\n".join(lines) + "\n"


def default_filters(verb: str) -> list[str]:
    """Return the filters that a verb uses where none are given."""
    from omegaconf import OmegaConf

    defaults = OmegaConf.load(CONF_DIR / f"{verb}.yaml").defaults
    return next((list(item.filters) for item in defaults if "filters" in item), [])


def strategy_lines(strategies: Sequence[Strategy]) -> list[str]:
    """Return some lines per strategy: what it does, the paper, and its options."""
    from benchmark.selection.assets import default_place
    from benchmark.selection.rules import filter_defaults

    lines = []
    for strategy in strategies:
        # A signal takes the options of the filter that uses it.
        prefix = "" if strategy.is_signal else f"filters.{strategy.name}."
        kind = strategy.kind + (", oracle: cannot be submitted" if strategy.reference else "")
        lines += [f"  {strategy.name} ({kind}): {strategy.summary}", f"      {strategy.paper}"]
        if strategy.has_cut:
            cut = (
                f"fraction={strategy.fraction:g}"
                if strategy.fraction is not None
                else f"threshold={strategy.threshold:g}"
            )
            lines.append(f"      filters.{strategy.name}.fraction, .threshold: number (declared cut: {cut})")
        for option in strategy.options.values():
            default = "required" if option.is_required else repr(filter_defaults(strategy)[option.name])
            expected = option.type_name
            if option.name in strategy.assets:
                expected = "file or list of files" if option.is_list else "file"
                default = default_place(strategy.assets[option.name])
            lines.append(f"      {prefix}{option.name}: {expected} (default: {default})")
    return lines
