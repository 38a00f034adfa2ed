"""What the filter stage did, as lines of text."""

from __future__ import annotations

from pathlib import Path

from benchmark.runtime.costs import last_cost
from benchmark.runtime.records import Record
from benchmark.selection.engine import RuleReport
from benchmark.selection.shard_evaluation import Cost


def describe_filters(exp_dir: Path, record: Record) -> list[str]:
    """Return one line per rule: what it dropped, alone and together with others, its ties, and the time it took.

    Then one for each signal and for reading images, where that took any.
    """
    reports = [RuleReport.from_json(report) for report in record.result["rules"]]
    spent = {name: Cost(**each) for name, each in last_cost(exp_dir, "filter").get("strategies", {}).items()}
    others = [name for name in spent if name not in {report.name for report in reports}]
    width = max([len(name) for name in (*others, *(report.name for report in reports))], default=0)
    return [
        f"  {report.name:<{width}}  kept {report.kept:>10,}   dropped {report.dropped:>10,}"
        f"   only it dropped {report.only_dropped:>10,}   missing {report.missing:>8,}"
        f"{_describe_ties(report)}   {_describe_effort(spent.get(report.name))}".rstrip()
        for report in reports
    ] + [f"  {name:<{width}}  {_describe_effort(spent[name])}" for name in others]


def _describe_ties(report: RuleReport) -> str:
    """Return how many of the rows tied at the cut are kept; empty if all of them are."""
    return f"   tied at the cut {report.tied:,}, the {report.tied_kept:,} smallest uids kept" if report.tied else ""


def _describe_effort(effort: Cost | None) -> str:
    """Return the time that a strategy took; none is counted for rows whose values were cached."""
    if effort is None:
        return ""
    if effort.rows == 0:
        return "cached"
    spent = f"{effort.seconds:.1f} s" if effort.seconds >= 0.05 else "<0.1 s"
    return spent if effort.rows >= effort.asked else f"{spent} for {effort.rows:,} rows, the others cached"
