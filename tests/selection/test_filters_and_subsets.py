"""The filter engine: cuts, ties, missing values, several rules, within, selectors, wrong filters and wrong pools."""

import numpy as np
import pandas as pd
import pytest

from benchmark.pool.pool import Pool
from benchmark.pool.subset import Subset, load_subset
from benchmark.pool.uids import format_uids, parse_uids
from benchmark.registry import STRATEGIES
from benchmark.runtime.errors import UserError
from benchmark.selection.engine import run_filters
from benchmark.selection.rules import Cut, Rule
from benchmark.selection.scoring import top_fraction
from tests.conftest import loaded_plugin, uid, user_error, write_pool

PLUGIN = '''"""Filters made for tests."""

import numpy as np
import pandas as pd

from benchmark import register_filter, register_selector
from benchmark.selection.views import PoolView
from benchmark.pool.subset import Subset


@register_filter(columns=["score"], fraction=0.5)
def t_score(rows: pd.DataFrame) -> pd.Series:
    """Score by the column."""
    return rows["score"]


@register_filter(columns=["mask"])
def t_mask(rows: pd.DataFrame) -> pd.Series:
    """Keep by the column."""
    return rows["mask"]


@register_filter(columns=["copies"])
def t_copies(rows: pd.DataFrame) -> pd.Series:
    """Copy by the column."""
    return rows["copies"]


@register_filter(columns=["score"], features=["{arch}_img"], threshold=0.5)
def t_feature(rows: pd.DataFrame, features: dict[str, np.ndarray], *, arch: str = "l14") -> np.ndarray:
    """Score by the first number of the feature."""
    return features[f"{arch}_img"][:, 0]


@register_filter(columns=["number"], fraction=0.5)
def t_number(rows: pd.DataFrame) -> pd.Series:
    """Score by whole numbers."""
    return rows["number"]


@register_filter(columns=["text", "score"], fraction=0.25)
def t_english(rows: pd.DataFrame) -> pd.Series:
    """Score by the column where the caption is English."""
    return rows["score"].where(rows["text"].str.startswith("en"))


@register_filter(columns=["score"])
def t_uncut(rows: pd.DataFrame) -> pd.Series:
    """Forget to declare a cut."""
    return rows["score"]


@register_filter(columns=["score"])
def t_short(rows: pd.DataFrame) -> pd.Series:
    """Return too few values."""
    return rows["score"] > 0 if len(rows) < 2 else (rows["score"] > 0)[:-1]


@register_filter(columns=["score"])
def t_reordered(rows: pd.DataFrame) -> pd.Series:
    """Return values in another order."""
    return rows["score"].sort_values() > 0


@register_filter(columns=["score"])
def t_raises(rows: pd.DataFrame) -> pd.Series:
    """Ask for a column that was not declared."""
    return rows["text"]


@register_filter(columns=["score"])
def t_text(rows: pd.DataFrame) -> list:
    """Return strings."""
    return ["x"] * len(rows)


@register_filter(columns=["score"])
def t_silent(rows: pd.DataFrame) -> None:
    """Return nothing."""


@register_filter(columns=["score"])
def t_opens(rows: pd.DataFrame) -> pd.Series:
    """Read a file that is not there."""
    return pd.read_csv("nowhere.txt")


@register_filter(columns=["score"], features=["l14_img"])
def t_vandal(rows: pd.DataFrame, features: dict[str, np.ndarray]) -> list:
    """Change what was handed over."""
    features["l14_img"][:] = 0
    rows["score"] = 0.0
    return [True] * len(rows)


@register_filter(columns=["mask"])
def t_list(rows: pd.DataFrame) -> list:
    """Return a list with None in it."""
    return [None if pd.isna(value) else bool(value) for value in rows["mask"]]


@register_filter(columns=["score"])
def t_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return two dimensions."""
    return rows[["score"]]


@register_filter(columns=["score"])
def t_exits(rows: pd.DataFrame) -> pd.Series:
    """End the program."""
    raise SystemExit(0)


@register_selector(columns=["score"])
def t_broken(pool: PoolView, *, seed: int = 0) -> Subset:
    """Raise."""
    raise IndexError("no such row")


@register_selector(columns=["score"])
def t_sorts(pool: PoolView, *, seed: int = 0) -> Subset:
    """Sort the uids in place and take all."""
    pool.uids.sort()
    pool.columns["score"] = 0.0
    return Subset(pool.uids)


@register_selector(columns=["score"])
def t_twice(pool: PoolView, *, seed: int = 0) -> Subset:
    """Take the row with the highest score twice, and the others once."""
    best = int(pool.columns["score"].to_numpy().argmax())
    return Subset.of(np.concatenate([pool.uids, pool.uids[[best]]]))


@register_selector()
def t_stranger(pool: PoolView, *, seed: int = 0) -> Subset:
    """Invent a uid."""
    strange = pool.uids[:1].copy()
    strange["f0"] += 1
    return Subset.of(strange)
'''


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory, strategies):
    with loaded_plugin(tmp_path_factory.mktemp("plugins") / "made_for_tests.py", PLUGIN) as path:
        yield path


def chosen(pool_dir, *rules, **options):
    outcome = run_filters(Pool(pool_dir), rules, **options)
    return [int(text, 16) for text in format_uids(outcome.subset.uids)], outcome


def scored(tmp_path, scores, uids=None, name="pool", **columns):
    uids = range(len(scores)) if uids is None else uids
    return write_pool(tmp_path / name, {"uid": [uid(n) for n in uids], "score": scores, **columns})


def top(fraction):
    return Rule("t_score", cut=Cut("fraction", fraction))


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.2, [3]), (0.3, [3, 4]), (0.5, [0, 3]), (0.7, [0, 3, 4, 1]), (1.0, [0, 1, 2, 3, 4])]
)
def test_top_fraction_is_exact(fraction, expected):
    """round(f * 5): Python rounds .5 to the even number, so .5 keeps 2 and .3 keeps 2 (1.5)."""
    scores = np.array([0.5, 0.1, 0.0, 0.9, 0.4])
    keep = top_fraction(scores, parse_uids([uid(n) for n in range(5)]), fraction, 5)
    order = np.argsort(-scores)
    assert sorted(np.flatnonzero(keep)) == sorted(order[: round(fraction * 5)])
    assert len(np.flatnonzero(keep)) == round(fraction * 5) == len(expected)


def test_top_fraction_is_exact_under_ties_and_they_go_to_the_smaller_uid(tmp_path):
    pool = scored(tmp_path, [1.0, 2.0, 1.0, 1.0, 0.0, 1.0], uids=[9, 8, 3, 7, 1, 5])
    assert chosen(pool, top(0.5))[0] == [3, 5, 8]


def test_file_order_does_not_matter(tmp_path):
    generator = np.random.default_rng(0)
    uids, scores = generator.permutation(40), generator.integers(0, 4, 40) / 4
    one = write_pool(tmp_path / "one", {"uid": [uid(n) for n in uids], "score": scores})
    order = generator.permutation(40)
    parts = [
        {"uid": [uid(n) for n in uids[rows]], "score": scores[rows]} for rows in (order[:7], order[7:7], order[7:])
    ]
    many = write_pool(tmp_path / "many", *parts)
    assert chosen(one, top(0.35))[0] == chosen(many, top(0.35))[0]


def test_a_shard_without_values_is_not_taken_for_the_columns_copy(tmp_path):
    """The second shard's rows have the higher scores in the column, and no value."""
    shards = [
        {
            "uid": [uid(n) for n in range(first, first + 4)],
            "text": [f"{language} word"] * 4,
            "score": np.arange(4) / 10 + up,
        }
        for first, language, up in ((0, "en", 0.0), (4, "de", 0.5))
    ]
    kept, outcome = chosen(write_pool(tmp_path / "p", *shards), Rule("t_english", cut=Cut("fraction", 0.25)))
    assert kept == [2, 3] and outcome.reports[0].missing == 4


def test_a_column_copied_with_a_silent_shard_is_read_again_and_not_kept(tmp_path):
    shards = [
        {"uid": [uid(0), uid(1)], "score": [0.1, 0.2]},
        {"uid": [uid(2)], "score": [np.nan]},
        {"uid": [], "score": []},
    ]
    pool = write_pool(tmp_path / "p", *shards)
    for _ in range(2):
        assert chosen(pool, top(0.34))[0] == [1]
    assert [path.name for path in (pool / "signals").glob("*/*.parquet")] == [f"{1:032x}.parquet"]


@pytest.mark.parametrize("score", [0.0, -0.0, np.inf, -np.inf, 3.5])
def test_a_fraction_of_scores_that_are_all_the_same_is_refused(tmp_path, score):
    pool = scored(tmp_path, [score] * 9 + [np.nan])
    for fraction in (0.1, 0.8):
        with pytest.raises(UserError) as caught:
            chosen(pool, top(fraction))
        assert caught.value.code == "constant-score" and f"the score {score + 0:g}, so" in str(caught.value)
    assert chosen(pool, top(1.0))[0] == list(range(9))


def test_what_ties_decide_is_counted_and_told_from_one_in_a_hundred_on(tmp_path, capsys):
    pool = scored(tmp_path, [2.0] * 150 + [1.0] * 100 + [0.0] * 750)
    (report,) = chosen(pool, top(0.2))[1].reports
    assert (report.kept, report.tied, report.tied_kept) == (200, 100, 50)
    assert "100 rows have the lowest score that is kept, and only 50" in capsys.readouterr().err
    (report,) = chosen(pool, top(0.151))[1].reports
    assert (report.tied, report.tied_kept) == (100, 1) and capsys.readouterr().err == ""
    (report,) = chosen(pool, top(0.25))[1].reports
    assert (report.tied, report.tied_kept) == (0, 0) and capsys.readouterr().err == ""


def test_whole_numbers_are_scores_where_there_is_a_cut(tmp_path):
    parts = [{"uid": [uid(0), uid(1)], "number": [-5, 3]}, {"uid": [uid(2), uid(3)], "number": [None, 9]}]
    pool = write_pool(tmp_path / "p", *parts)
    assert chosen(pool, Rule("t_number", cut=Cut("fraction", 0.5)))[0] == [1, 3]
    assert chosen(pool, Rule("t_number", cut=Cut("threshold", 0.5)))[0] == [1, 3]
    assert chosen(pool, Rule("t_number", cut=Cut("threshold", -5)))[0] == [0, 1, 3]
    with pytest.raises(UserError) as caught:
        chosen(
            write_pool(tmp_path / "q", {"uid": [uid(0)], "number": [2**53 + 2]}),
            Rule("t_number", cut=Cut("fraction", 1.0)),
        )
    assert caught.value.code == "score-too-large"


def test_minus_zero_ties_with_zero(tmp_path):
    assert chosen(scored(tmp_path, [0.0, -0.0, -1.0], uids=[2, 1, 0]), top(0.3))[0] == [1]


def test_missing_scores_are_counted_and_fraction_counts_all_rows(tmp_path, capsys):
    pool = scored(tmp_path, [np.nan, 0.1, 0.2, np.nan])
    kept, outcome = chosen(pool, top(0.75))
    assert kept == [1, 2]
    assert outcome.reports[0].missing == 2
    assert "3 rows were wanted but only 2 have a score" in capsys.readouterr().err
    with pytest.raises(UserError) as caught:
        chosen(scored(tmp_path / "none", [np.nan, np.nan]), top(0.5))
    assert caught.value.code == "nothing-left" and "are kept" not in capsys.readouterr().err


@pytest.mark.parametrize(("dtype", "expected"), [(np.float32, [0, 1]), (np.float64, [1])])
def test_a_threshold_is_compared_in_the_scores_own_type(tmp_path, dtype, expected):
    """float32(.26) is below .26 in float64; in its own column it passes --threshold .26, as in DataComp."""
    below = np.array([np.float32(0.26), 0.3]) - (1e-9 if dtype == np.float64 else 0)
    pool = scored(tmp_path, below.astype(dtype))
    assert chosen(pool, Rule("t_score", cut=Cut("threshold", 0.26)))[0] == expected


def test_masks_and_cuts_gate_and_each_votes_on_the_whole_pool(tmp_path):
    pool = scored(tmp_path, [4.0, 3.0, 2.0, 1.0], mask=[False, True, True, True])
    kept, outcome = chosen(pool, Rule("t_mask"), top(0.5))
    assert kept == [1]
    mask, score = outcome.reports
    assert (mask.kept, mask.dropped, mask.only_dropped) == (3, 1, 1)
    assert (score.kept, score.dropped, score.only_dropped) == (2, 2, 2)


def test_null_masks_are_missing_values(tmp_path):
    pool = scored(tmp_path, [1.0, 1.0, 1.0], mask=pd.array([True, None, False], dtype="boolean"))
    kept, outcome = chosen(pool, Rule("t_mask"))
    assert kept == [0] and outcome.reports[0].missing == 1


def test_ints_are_copies_and_several_take_the_minimum(tmp_path):
    pool = scored(tmp_path, [1.0, 2.0, 3.0], copies=[2, 0, 3])
    assert chosen(pool, Rule("t_copies"))[0] == [0, 0, 2, 2, 2]
    assert chosen(pool, Rule("t_copies"), Rule("t_twice", {"seed": 0}))[0] == [0, 2, 2]
    assert chosen(pool, Rule("t_twice", {"seed": 0}), top(0.34))[0] == [2, 2]


def test_a_uid_on_several_rows_is_kept_once_per_surviving_row(tmp_path):
    pool = scored(tmp_path, [1.0, 0.2, 0.9, 0.1], uids=[7, 1, 7, 7])
    kept, outcome = chosen(pool, top(0.5))
    assert kept == [7, 7] and outcome.repeated_uids == 1
    kept, _ = chosen(pool, Rule("t_twice", {"seed": 0}))
    assert kept == [1, 7, 7, 7, 7]


def test_within_is_the_pool_and_fractions_count_it(tmp_path):
    pool = scored(tmp_path, [9.0, 8.0, 7.0, 6.0, 5.0, 4.0], copies=[3] * 6)
    within = Subset.of(parse_uids([uid(n) for n in (2, 3, 3, 5)]))
    assert chosen(pool, top(0.6667), within=within)[0] == [2, 3, 3]  # gates keep its copies
    assert chosen(pool, top(0.3334), Rule("t_copies"), within=within)[0] == [2, 2, 2]  # ints replace them
    assert chosen(pool, Rule("t_twice", {"seed": 0}), within=within)[0] == [2, 2, 3, 5]  # selectors see only it
    with user_error("uid-unknown", match="within=.*1 of 2"):
        chosen(pool, top(0.5), within=Subset.of(parse_uids([uid(2), uid(99)])))


def test_within_may_be_a_part_of_a_mapped_file(tmp_path):
    pool = scored(tmp_path, [1.0, 4.0, 3.0, 2.0])
    Subset.of(parse_uids([uid(n) for n in (0, 1, 2)])).write(tmp_path / "subset.npy")
    part = Subset(load_subset(tmp_path / "subset.npy").uids[:2])
    assert chosen(pool, top(0.5), within=part)[0] == [1]


def test_features_are_handed_over_row_by_row(tmp_path):
    features = {"l14_img": np.array([[0.9, 0], [0.1, 0], [0.6, 0]], dtype=np.float16), "b32_img": np.zeros((3, 2))}
    pool = write_pool(tmp_path / "p", {"uid": [uid(n) for n in range(3)], "score": [0.0] * 3}, features=features)
    assert chosen(pool, Rule("t_feature", {"arch": "l14"}, Cut("threshold", 0.5)))[0] == [0, 2]
    with user_error("array-missing", match=r"'x_img'.*\['l14_img', 'b32_img'\]"):
        chosen(pool, Rule("t_feature", {"arch": "x"}, Cut("threshold", 0.5)))


def test_a_missing_or_wrong_npz_is_named(tmp_path):
    rule = Rule("t_feature", {"arch": "l14"}, Cut("threshold", 0.5))
    with user_error("array-missing", match=r"\.npz"):
        chosen(scored(tmp_path, [0.0]), rule)
    columns = {"uid": [uid(0)], "score": [0.0]}
    with user_error("array-shape", match=r"l14_img.*\(2, 1\).*1 rows"):
        chosen(write_pool(tmp_path / "long", columns, features={"l14_img": np.zeros((2, 1))}), rule)


def test_results_do_not_depend_on_workers(tmp_path, plugin, pico_pool):
    rules = (
        Rule("clip_score", {"arch": "l14"}, Cut("fraction", 0.3)),
        Rule("random", {"seed": 1}, Cut("fraction", 0.5)),
    )
    alone = run_filters(Pool(pico_pool), rules)
    together = run_filters(Pool(pico_pool), rules, workers=2)
    assert (alone.subset.uids == together.subset.uids).all() and alone.reports == together.reports
    pool = scored(tmp_path, [1.0, 3.0, 2.0])
    with_plugin = run_filters(Pool(pool), [top(0.34)], workers=1, plugins=[str(plugin)])
    assert format_uids(with_plugin.subset.uids) == [uid(1)]


@pytest.mark.parametrize(
    ("name", "code", "value"),
    [
        ("t_uncut", "cut-missing", "t_uncut"),
        ("t_short", "strategy-result", "2 rows and .*1 "),
        ("t_reordered", "strategy-result", "index"),
        ("t_raises", "strategy-failed", r"'text'.*columns=.*made_for_tests\.py"),
        ("t_text", "strategy-result", "str; .*bool.*float.*int"),
        ("t_table", "strategy-result", "DataFrame of 2 dimensions"),
        ("t_silent", "strategy-result", "None"),
        ("t_exits", "strategy-failed", r"'t_exits' .*SystemExit: 0 .*made_for_tests\.py"),
        ("t_stranger", "selector-strange-uid", "'t_stranger' .*1 uids"),
        ("t_broken", "strategy-failed", r"'t_broken' .*IndexError: no such row .*made_for_tests\.py"),
    ],
)
def test_a_wrong_filter_is_named(tmp_path, name, code, value):
    pool = scored(tmp_path, [2.0, 1.0])
    with user_error(code, match=value):
        chosen(pool, Rule(name, {"seed": 0} if STRATEGIES[name].kind == "selector" else {}))


def test_what_a_strategy_says_of_its_own_option_stands_alone(pico_pool):
    for rule in (
        Rule("near_dedup", {"arch": "l14", "min_similarity": 1.5, "seed": 0}),
        Rule("normsim", {"norm": "min", "arch": "l14", "targets": None}, Cut("fraction", 0.2)),
    ):
        with user_error("option-value", match=rf"^filters\.{rule.name}\.(min_similarity=1.5|norm='min') [^:]*$"):
            run_filters(Pool(pico_pool), [rule])


def test_a_file_that_a_strategy_misses_is_told_with_its_name(tmp_path):
    with user_error("asset-not-found", match=r"'t_opens'.*nowhere\.txt"):
        chosen(scored(tmp_path, [2.0, 1.0]), Rule("t_opens"))


def test_more_copies_than_make_sense_are_refused(tmp_path):
    pool = scored(tmp_path, [1.0, 2.0], copies=[10**13, 1])
    with user_error("strategy-result", match="10,000,000,000,001 copies of 2"):
        chosen(pool, Rule("t_copies"))


def test_within_is_checked_before_any_filter_runs(tmp_path):
    within = Subset.of(parse_uids([uid(99)]))
    with user_error("uid-unknown", match="within=.*1 of 1"):
        chosen(scored(tmp_path, [2.0, 1.0]), Rule("t_raises"), within=within)


@pytest.mark.parametrize("offset", [60, 200, -40])
def test_damaged_files_are_named(tmp_path, offset):
    features = {"l14_img": np.zeros((2, 64), dtype=np.float16)}
    pool_dir = write_pool(tmp_path / "p", {"uid": [uid(0), uid(1)], "score": [0.0, 1.0]}, features=features)
    path = next((pool_dir / "metadata").glob("*.npz"))
    data = bytearray(path.read_bytes())
    data[offset : offset + 20] = b"x" * 20
    path.write_bytes(bytes(data))
    with user_error("file-damaged", match=r"\.npz"):
        chosen(pool_dir, Rule("t_feature", {"arch": "l14"}, Cut("threshold", 0.5)))
    path = next((pool_dir / "metadata").glob("*.parquet"))
    data = bytearray(path.read_bytes())
    data[4:200] = b"x" * 196
    path.write_bytes(bytes(data))
    with user_error("file-damaged", match=r"\.parquet"):
        chosen(pool_dir, top(0.5))


def test_what_one_rule_does_to_its_input_reaches_no_other(tmp_path):
    features = {"l14_img": np.array([[0.9], [0.1], [0.6], [0.2]], dtype=np.float16)}
    columns = {"uid": [uid(n) for n in (3, 1, 2, 0)], "score": [4.0, 3.0, 2.0, 1.0]}
    pool = write_pool(tmp_path / "p", columns, features=features)
    feature = Rule("t_feature", {"arch": "l14"}, Cut("threshold", 0.5))
    for vandal in (Rule("t_vandal"), Rule("t_sorts", {"seed": 0})):
        assert chosen(pool, vandal, feature)[0] == chosen(pool, feature, vandal)[0] == [2, 3]
        assert chosen(pool, vandal, top(0.5))[0] == chosen(pool, top(0.5), vandal)[0] == [1, 3]


def test_a_list_with_none_in_it_has_missing_values(tmp_path):
    pool = scored(tmp_path, [1.0, 1.0, 1.0], mask=pd.array([True, None, False], dtype="boolean"))
    kept, outcome = chosen(pool, Rule("t_list"))
    assert kept == [0] and outcome.reports[0].missing == 1


def test_negative_copies_are_refused(tmp_path):
    with user_error("strategy-result", match="-1 copies"):
        chosen(scored(tmp_path, [1.0, 1.0], copies=[1, -1]), Rule("t_copies"))


def test_a_missing_column_is_named_with_the_nearest(tmp_path):
    pool = write_pool(tmp_path / "p", {"uid": [uid(0)], "scores": [1.0]})
    with user_error("column-missing", match="'score'.*'scores'"):
        chosen(pool, top(0.5))


def test_null_and_malformed_uids_are_named(tmp_path):
    with user_error("uid-invalid", match=r"\.parquet.*row 1 "):
        chosen(write_pool(tmp_path / "a", {"uid": [uid(0), None, uid(2)], "score": [1.0, 1.0, 0.0]}), top(0.3))
    with user_error("uid-invalid", match=r"\.parquet.*row 0 .*'abc'"):
        chosen(write_pool(tmp_path / "b", {"uid": ["abc"], "score": [1.0]}), top(1.0))


def test_an_empty_result_tells_who_dropped_what(tmp_path):
    pool = scored(tmp_path, [1.0, np.nan], mask=[False, False])
    with user_error("nothing-left", match=r"t_mask.* 0 of 2 rows.*t_score.* 1 of 2 rows \(1"):
        chosen(pool, Rule("t_mask"), top(0.5))


def test_zero_row_shards_are_fine(tmp_path):
    empty = pd.DataFrame({"uid": pd.Series([], dtype=str), "score": pd.Series([], dtype=float)})
    pool = write_pool(tmp_path / "p", empty, {"uid": [uid(3)], "score": [1.0]})
    assert chosen(pool, top(1.0))[0] == [3]


def test_a_folder_that_is_no_pool_is_named(tmp_path):
    with user_error("pool-not-found"):
        Pool(tmp_path / "nowhere")
    with user_error("pool-not-found", match=r"metadata/\*\.parquet"):
        Pool(tmp_path)
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "x.parquet").write_text("not parquet")
    with user_error("file-damaged", match=r"x\.parquet"):
        Pool(tmp_path)


def test_the_fingerprint_is_kept_and_follows_changes(tmp_path):
    pool_dir = scored(tmp_path, [1.0, 2.0])
    first = Pool(pool_dir).compute_fingerprint()
    assert Pool(pool_dir).compute_fingerprint() == first
    assert Pool(scored(tmp_path, [2.0, 1.0], uids=[1, 0], name="turned")).compute_fingerprint() == first
    path = next((pool_dir / "metadata").glob("*.parquet"))
    pd.DataFrame({"uid": [uid(0), uid(5)], "score": [1.0, 2.0]}).to_parquet(path)
    assert Pool(pool_dir).compute_fingerprint() != first
