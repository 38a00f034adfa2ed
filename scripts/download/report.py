"""What of a pool arrived: counted by status and host."""

from __future__ import annotations

from collections import Counter

import pyarrow.compute as pc

from benchmark.runtime.console import say
from benchmark.runtime.files import Json
from scripts.download.record import GB, Download, host_of, is_permanent


def report(download: Download) -> dict[str, Json]:
    """Count what arrived, from the side parquets: each pair once, by its last try."""
    statuses: Counter[str] = Counter()
    failures: Counter[tuple[str, str]] = Counter()  # by host and message
    tar_bytes = shards_done = left = 0
    rounds = download.rounds
    for number, round_ in enumerate(rounds):
        tried = 0
        for shard in filter(download.is_done, round_.numbers):
            table = download.read_side(shard, ["url", "status", "error_message"])
            tried += len(table)
            shards_done += 1
            tar_bytes += download.shard_path(shard, ".tar").stat().st_size
            if number + 1 < len(rounds):  # what may succeed stands in the next round again
                table = table.filter(pc.or_(pc.equal(table["status"], "success"), is_permanent(table)))
            statuses["success"] += pc.sum(pc.equal(table["status"], "success")).as_py() or 0
            failed = table.filter(pc.not_equal(table["status"], "success"))
            messages = pc.coalesce(failed["error_message"], failed["status"]).to_pylist()
            failures.update(zip(map(host_of, failed["url"].to_pylist()), messages, strict=True))
        left += round_.rows - tried
    rows = sum(download.count_rows())
    left += rows if not rounds else 0
    present = statuses["success"]
    hosts: Counter[str] = Counter()
    mostly: dict[str, str] = {}
    for (host, message), count in failures.most_common():
        statuses[message] += count
        hosts[host] += count
        mostly.setdefault(host, message)
    return {
        "repo": download.record["repo"],
        "commit": download.record["commit"],
        "metadata": {
            "files": len(download.metadata_paths),
            "bytes": sum(path.stat().st_size for path in download.metadata_paths),
        },
        "pairs": rows,
        "present": present,
        "share": share(present, rows),
        "still_to_try": left,
        "bytes": tar_bytes,
        "shards": shards_done,
        "shards_planned": sum(each.shards for each in rounds),
        "rounds": len(rounds),
        "statuses": [
            {"status": status, "pairs": count, "share": share(count, rows)} for status, count in top(statuses, 50)
        ],
        "failing_hosts": [
            {"host": host, "pairs": count, "mostly": mostly[host]} for host, count in hosts.most_common(20)
        ],
    }


def share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0


def top(counts: Counter[str], number: int) -> list[tuple[str, int]]:
    """Return the most frequent, the others together as "other"."""
    first = counts.most_common(number)
    rest = counts.total() - sum(count for _, count in first)
    return first + ([("other", rest)] if rest else [])


def print_report(values: dict[str, Json]) -> None:
    """Print a report; the last line says the coverage."""
    say(f"{values['repo']} at {values['commit'] or 'an unknown commit'}")
    for each in values["statuses"][:12]:
        say(f"  {each['pairs']:>14,}  {100 * each['share']:6.2f} %  {each['status']}")
    if left := values["still_to_try"]:
        say(f"  {left:>14,}  {100 * share(left, values['pairs']):6.2f} %  to be tried")
    for each in values["failing_hosts"][:5]:
        say(f"  fails: {each['host'] or 'no host'} ({each['pairs']:,} pairs, mostly: {each['mostly']})")
    say(f"  {values['shards']:,} of {values['shards_planned']:,} shards, {values['bytes'] / GB:,.3f} GB")
    say(f"{values['present']:,} of {values['pairs']:,} pairs ({100 * values['share']:.1f} %)")
