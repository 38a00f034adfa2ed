"""Rules as they stand in records, and whether a rule of now is one of then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def without_sources(value: Any) -> Any:
    """Return rules, as they stand in records, by what identifies them: `source` goes where there is an `identity`."""
    return _changed_rules(value, lambda rule: {k: v for k, v in rule.items() if k != "source" or not rule["identity"]})


def as_recorded(now: Any, there: Any) -> Any:
    """Return rules as a record would state them that fits, so that the two can be compared value by value.

    Of the same `identity` the file may be another (its comments). A record made before there was an `identity` states
    the whole file's hash alone, and fits a rule of the same file: what a helper was then is known to nobody.
    """
    if isinstance(now, list) and isinstance(there, list) and len(now) == len(there):
        return [as_recorded(*pair) for pair in zip(now, there, strict=True)]
    if not (isinstance(now, dict) and isinstance(there, dict)):
        return now
    found = {key: as_recorded(value, there.get(key)) for key, value in now.items()}
    if _is_rule(now) and now["identity"] and now["identity"] == there.get("identity"):
        found["source"] = there.get("source")
    elif _is_rule(now) and "identity" not in there:
        del found["identity"]
        # Then only declared packages were stated, by a rule that declared any.
        stated = {name: found.get("packages", {}).get(name) for name in there.get("packages", {})}
        found = {
            **{key: value for key, value in found.items() if key != "packages"},
            **({"packages": stated} if stated else {}),
        }
    return found


def _is_rule(value: dict[str, Any]) -> bool:
    return {"name", "options", "source", "identity"} <= set(value)


def _changed_rules(value: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Return a JSON value with every rule in it changed."""
    if isinstance(value, list):
        return [_changed_rules(each, change) for each in value]
    if isinstance(value, dict):
        inner = {key: _changed_rules(each, change) for key, each in value.items()}
        return change(inner) if _is_rule(inner) else inner
    return value
