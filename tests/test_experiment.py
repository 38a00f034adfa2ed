"""Experiments: how an entry is named, and that a subset is of the pool as it is."""

import numpy as np
import pandas as pd
import pytest

from benchmark.experiment import Choice, entry_name, filter_stage
from benchmark.pool import Pool
from benchmark.rules import Cut, Rule
from benchmark.stage import Record
from benchmark.subset import load_subset
from benchmark.uids import format_uids
from tests.conftest import uid, write_pool


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


def test_a_subset_of_metadata_that_changed_under_the_same_uids_is_not_taken_for_a_new_ones(strategies, tmp_path):
    """The fingerprint is of the uids alone, and so is the experiment's hash."""
    pool_dir = tmp_path / "pool"
    columns = {"uid": [uid(0), uid(1)], "clip_l14_similarity_score": np.array([0.1, 0.9], dtype=np.float32)}
    write_pool(pool_dir, columns)
    choice = Choice((Rule("clip_score", {"arch": "l14"}, Cut("fraction", 0.5)),))

    def chosen(folder):
        filter_stage(tmp_path / folder, Pool(pool_dir), choice, workers=0, plugins=())
        return format_uids(load_subset(tmp_path / folder / "subset.npy").uids)

    assert chosen("exp") == chosen("exp") == [uid(1)]
    path = next((pool_dir / "metadata").glob("*.parquet"))
    pd.DataFrame(columns | {"clip_l14_similarity_score": [0.9, 0.1]}).to_parquet(path)
    with pytest.raises(ValueError, match=r"was filtered from other metadata.*under the same uids"):
        chosen("exp")
    assert chosen("other") == [uid(0)]
