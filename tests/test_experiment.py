"""Experiments: how an entry is named."""

import pytest

from benchmark.experiment import entry_name
from benchmark.stage import Record


def record(*rules, within=None, subset=None):
    filters = [{"name": name, "options": options, "cut": cut, "source": "0"} for name, options, cut in rules]
    return Record("filter", 1, {"pool": "a", "filters": filters, "within": within, "subset": subset}, {})


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (record(("no_filter", {}, None)), "no_filter"),
        (record(("clip_score", {"arch": "l14"}, {"fraction": 0.3})), "clip_score-0.3"),
        (record(("clip_score", {"arch": "b32"}, {"threshold": 0.281})), "clip_score-arch-b32-0.281"),
        (
            record(("dedup", {"seed": 1}, None), ("clip_score", {"arch": "l14"}, {"fraction": 0.3}), within="ab" * 32),
            "dedup-seed-1+clip_score-0.3-within-abababab",
        ),
        (record(subset="cd" * 32), "subset-cdcdcdcd"),
        (record(("basic", {"language": "a/b ü"}, None)), "basic-language-a_b__"),
    ],
)
def test_an_entry_is_named_after_what_is_not_the_default(strategies, tmp_path, made, name):
    assert entry_name(made, tmp_path) == name


def test_a_long_name_is_cut_and_stays_unique(strategies, tmp_path):
    names = {entry_name(record(("basic", {"language": "x" * 100 + end}, None)), tmp_path) for end in "ab"}
    assert len(names) == 2 and all(len(name) == 80 for name in names)
