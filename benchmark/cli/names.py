"""Names of options on the command line: which there are, and the nearest one to a name that is not."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from benchmark.cli.command_table import COMMANDS
from benchmark.cli.options import option_names, takes_filters
from benchmark.registry import STRATEGIES, get_chooser
from benchmark.runtime.errors import UnknownNameError
from benchmark.runtime.names import nearest_name
from benchmark.selection.rules import filter_defaults, known_strategies

MAX_HINTS = 3  # filters named, where an option of theirs stands alone
CLOSE = 0.8  # how near a name must be to be meant although filters have an option of the name given


def check_override_name(verb: str, key: str, filters: Sequence[str] = ()) -> None:
    """Raise UnknownNameError, with the nearest name, if a command-line option is not one of the verb's.

    `filters` are the chosen ones: an option of theirs is named with its filter.
    """
    first, *rest = key.split(".")
    if first == "hydra" or key.startswith("hydra/"):
        return
    known = [
        *option_names(COMMANDS[verb].verb.config),
        *(["filters"] if takes_filters(COMMANDS[verb].verb.config) else []),
    ]
    if first not in known:
        hint = _hint_of_filters(verb, key, filters, close=get_close_matches(first, known, 1, CLOSE))
        hint = hint or nearest_name(first, known)
        raise UnknownNameError(
            f"winnow {verb} has no option {key!r}.{hint} Options: {', '.join(known)}.", code="unknown-option"
        )
    if first != "filters" and rest:
        raise UnknownNameError(f"winnow {verb} has no option {key!r}; {first} is a single value", code="unknown-option")
    if first == "filters" and rest:
        strategy = get_chooser(rest[0])
        options = list(filter_defaults(strategy))
        if len(rest) == 1:
            raise UnknownNameError(
                f"{key}= needs an option of the filter: {', '.join(f'{key}.{o}=' for o in options) or 'none'}",
                code="unknown-option",
            )
        if len(rest) != 2 or rest[1] not in options:
            name = ".".join(rest[1:])
            raise UnknownNameError(
                f"filter {strategy.name!r} has no option {name!r}.{nearest_name(name, options)} "
                f"Options: {', '.join(options) or 'none'}.",
                code="unknown-option",
            )


def _hint_of_filters(verb: str, key: str, filters: Sequence[str], close: Sequence[str]) -> str:
    """Return which filter's option may be meant: a chosen filter's, else, if no name is close, any; may be empty."""
    if not takes_filters(COMMANDS[verb].verb.config):
        return ""
    first, *rest = key.split(".")
    if first in STRATEGIES and not STRATEGIES[first].is_signal:  # the word `filters` was left out
        return f" Did you mean 'filters.{key}'?"
    holders = {s.name: f"filters.{s.name}.{key}" for s in known_strategies() if not rest and key in filter_defaults(s)}
    shown = [text for name, text in holders.items() if name in filters]
    if not shown and not close:
        shown = list(holders.values())
    if not shown:
        return ""
    more = f" ({len(shown) - MAX_HINTS} more filters have one)" if len(shown) > MAX_HINTS else ""
    return f" It is an option of filters: {' or '.join(shown[:MAX_HINTS])}{more}."
