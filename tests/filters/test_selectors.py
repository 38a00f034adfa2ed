"""Soft cap sampling and density-based pruning against brute force, and the clusters that selectors share."""

import inspect
import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from benchmark.pool.pool import Pool
from benchmark.pool.uids import format_uids, parse_uids
from benchmark.selection.engine import run_filters
from benchmark.selection.rules import Rule
from benchmark.selection.views import PoolView
from benchmark.toolbox.clusters import embedded_rows, fit_centroids, nearest_centroids
from tests.conftest import uid, user_error, write_pool


def make_view(numbers, *, scores=None, images=None):
    columns = pd.DataFrame(index=range(len(numbers)))
    if scores is not None:
        columns["clip_l14_similarity_score"] = np.asarray(scores)
    features = {} if images is None else {"l14_img": np.asarray(images, dtype=np.float16)}
    return PoolView(parse_uids([uid(int(number)) for number in numbers]), columns, features)


def shuffled(view, seed):
    order = np.random.default_rng(seed).permutation(len(view.uids))
    columns = view.columns.iloc[order].reset_index(drop=True)
    return PoolView(view.uids[order], columns, {name: array[order] for name, array in view.features.items()})


def chosen(strategies, name, view, **options):
    return [int(text, 16) for text in format_uids(strategies[name].function(view, **options).uids)]


def copies_of(strategies, scores, **options):
    """Return how many copies soft cap sampling gives the pairs, whose uids are 0, 1, 2, ..."""
    drawn = chosen(strategies, "soft_cap_sampling", make_view(range(len(scores)), scores=scores), **options)
    return np.bincount(drawn, minlength=len(scores)).tolist()


def test_soft_cap_sampling_draws_as_a_loop_that_takes_one_pair_at_a_time(strategies):
    rng = np.random.default_rng(3)
    scores = rng.normal(size=60).astype(np.float32)
    for penalty, max_copies in [(0.15, None), (0.5, None), (0.0, 3), (2.0, 4)]:
        z = 1.5 * (scores - scores.mean(dtype=np.float64)) / scores.std(dtype=np.float64)
        numbers, copies = np.random.default_rng(8), [0] * 60
        while sum(copies) < 150:
            noise = [-math.log(number) for number in numbers.standard_exponential(60)]
            batch = []
            while len(batch) < 7 and sum(copies) + len(batch) < 150:
                rest = [i for i in range(60) if i not in batch and copies[i] < (max_copies or 150)]
                batch.append(max(rest, key=lambda i: z[i] - penalty * copies[i] + noise[i]))
            for i in batch:
                copies[i] += 1
        options = {"draws": 2.5, "batch": 7 / 60, "penalty": penalty, "spread": 1.5, "max_copies": max_copies}
        assert copies_of(strategies, scores, seed=8, **options) == copies


def test_without_a_penalty_pairs_are_drawn_in_proportion_to_the_softmax(strategies):
    # Scores of 0 and 1 are z = -spread and +spread; so the odds are 3 to 1.
    first, second = copies_of(strategies, [0.0, 1.0], draws=4000, penalty=0.0, spread=math.log(3) / 2)
    assert first + second == 8000 and abs(second - 6000) < 150  # 4 standard errors


def test_a_batch_is_drawn_without_replacement(strategies):
    # z in steps of log 2: weights 1, 2 and 4, and two of the three in every batch.
    spread = math.log(2) * math.sqrt(2 / 3)
    copies = copies_of(strategies, [0.0, 1.0, 2.0], draws=4000, batch=2 / 3, penalty=0.0, spread=spread)
    left_out = [6000 - count for count in copies]
    # The third goes first with 4/7 and the second next with 2/3; or the other way round: 2/7 * 4/5.
    assert np.allclose(left_out, [6000 * 64 / 105, 6000 * 30 / 105, 6000 * 11 / 105], atol=150)


def test_a_large_penalty_gives_all_nearly_the_same_copies(strategies):
    scores = np.random.default_rng(1).normal(size=10)
    assert sorted(copies_of(strategies, scores, draws=3.5, penalty=1000.0)) == [3] * 5 + [4] * 5


def test_the_penalty_makes_up_for_the_score(strategies):
    # Where each has its share, z - 0.1 * copies is equal: z differs by 2, so the copies by 20.
    low, high = copies_of(strategies, [0.0, 1.0], draws=500, penalty=0.1, spread=1.0)
    assert low + high == 1000 and abs(high - low - 20) < 20
    steep = copies_of(strategies, [0.0, 1.0], draws=500, penalty=0.01, spread=1.0)
    assert abs(steep[1] - steep[0] - 200) < 60


def test_a_hard_cap_stops_at_so_many_copies(strategies):
    scores = [0.0, 1.0, 2.0, 10.0]
    assert copies_of(strategies, scores, draws=3.0, penalty=0.0, max_copies=3) == [3, 3, 3, 3]
    assert copies_of(strategies, scores, draws=1.25, penalty=0.0, max_copies=3, spread=50.0) == [0, 0, 2, 3]
    assert copies_of(strategies, scores, draws=1.5, batch=1.0, penalty=0.0, max_copies=2, spread=50.0) == [1, 1, 2, 2]


def test_soft_cap_sampling_never_draws_a_pair_without_a_score(strategies):
    copies = copies_of(strategies, [0.1, np.nan, 0.2, np.inf, 0.3], draws=2.0)
    assert copies[1] == copies[3] == 0 and sum(copies) == 10


def test_equal_scores_are_drawn_evenly(strategies):
    assert max(copies_of(strategies, [0.3] * 100, batch=1.0)) == 1


def test_soft_cap_sampling_depends_on_seed_and_uids_and_not_on_the_order_of_rows(strategies):
    numbers = np.random.default_rng(2).integers(0, 150, size=200)  # some uids on several rows
    view = make_view(numbers, scores=np.random.default_rng(3).normal(size=200).round(1))
    subsets = [chosen(strategies, "soft_cap_sampling", view, seed=seed) for seed in (0, 1)]
    assert subsets[0] != subsets[1]
    for seed, expected in enumerate(subsets):
        for order in range(3):
            assert chosen(strategies, "soft_cap_sampling", shuffled(view, order), seed=seed) == expected


def test_soft_cap_sampling_runs_in_the_engine_by_any_column(strategies, tmp_path):
    scores = np.random.default_rng(4).normal(size=50)
    pool = write_pool(tmp_path / "p", {"uid": [uid(n) for n in range(50)], "mine": scores, "text": ["a"] * 50})
    outcome = run_filters(Pool(pool), [Rule("soft_cap_sampling", {"score": "mine", "draws": 3.0})])
    drawn = [int(text, 16) for text in format_uids(outcome.subset.uids)]
    assert np.bincount(drawn, minlength=50).tolist() == copies_of(strategies, scores, draws=3.0)
    with user_error("option-value", match="soft_cap_sampling.score='text'"):
        run_filters(Pool(pool), [Rule("soft_cap_sampling", {"score": "text"})])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("soft_cap_sampling", {"batch": 0.0}, "soft_cap_sampling.batch=0.0 "),
        ("soft_cap_sampling", {"draws": 0.0}, "soft_cap_sampling.draws=0.0 "),
        ("soft_cap_sampling", {"penalty": -0.1}, "soft_cap_sampling.penalty=-0.1 "),
        ("soft_cap_sampling", {"spread": -1.0}, "soft_cap_sampling.spread=-1.0 "),
        ("soft_cap_sampling", {"max_copies": 0}, "soft_cap_sampling.max_copies=0 "),
        ("soft_cap_sampling", {"max_copies": 2, "draws": 3.0}, "max_copies=2 .*40 .*20 "),
        ("density_pruning", {"keep": 40.0}, "density_pruning.keep=40.0 "),
        ("density_pruning", {"clusters": 21}, "density_pruning.clusters=21 .*20"),
        ("density_pruning", {"temperature": 0.0}, "density_pruning.temperature=0.0 "),
        ("density_pruning", {"min_balance": 1.5}, "density_pruning.min_balance=1.5 "),
        ("density_pruning", {"prefer": "soft"}, "density_pruning.prefer='soft' .*hard or easy"),
    ],
)
def test_options_out_of_range_are_refused(strategies, name, options, message):
    rng = np.random.default_rng(0)
    view = make_view(range(20), scores=rng.normal(size=20), images=rng.normal(size=(20, 4)))
    with pytest.raises(ValueError, match=f"filters.*{message}"):
        strategies[name].function(view, **options)


def test_a_column_without_any_score_is_named(strategies):
    with pytest.raises(ValueError, match=r"soft_cap_sampling.score='clip_l14_similarity_score'"):
        copies_of(strategies, [np.nan, np.nan])


def solve_by_scipy(target, lower, upper, total):
    """Solve the quadratic program, in parts of the total."""
    scale = max(1, total)
    found = minimize(
        lambda x: x @ x / 2 - target @ x / scale,
        (lower + upper) / 2 / scale,
        jac=lambda x: x - target / scale,
        bounds=list(zip(lower / scale, upper / scale, strict=True)),
        constraints={"type": "eq", "fun": lambda x: x.sum() - total / scale, "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    assert found.success, found.message
    return found.x * scale


def test_shares_are_the_solution_of_the_quadratic_program(strategies):
    share_out = inspect.unwrap(strategies["density_pruning"].function).__globals__["share_out"]
    rng = np.random.default_rng(5)
    for _ in range(100):
        count = int(rng.integers(1, 9))
        upper = rng.integers(0, 30, size=count)
        lower = np.minimum(rng.integers(0, 6, size=count), upper)
        total = int(rng.integers(lower.sum(), upper.sum() + 1))
        target = total * rng.dirichlet(np.full(count, 0.5))
        shares = share_out(target, lower, upper, total)
        assert np.allclose(shares, solve_by_scipy(target, lower, upper, total), atol=1e-5)
        assert math.isclose(shares.sum(), total, abs_tol=1e-9)


def test_shares_of_a_full_and_of_an_empty_cluster_go_to_the_others(strategies):
    share_out = inspect.unwrap(strategies["density_pruning"].function).__globals__["share_out"]
    # The first has but 4 of the 6 it should give; the three others make up for it evenly, but the last is empty.
    target, upper = np.array([6.0, 3.0, 1.0, 0.0]), np.array([4, 9, 9, 0])
    assert share_out(target, np.zeros(4), upper, 10).tolist() == [4, 4, 2, 0]
    assert share_out(target, np.array([0, 0, 4, 0]), upper, 10).tolist() == [4, 2, 4, 0]
    assert share_out(target, np.zeros(4), upper, 22).tolist() == [4, 9, 9, 0]


def test_whole_numbers_are_the_nearest_to_the_shares_with_their_sum(strategies):
    round_to_sum = inspect.unwrap(strategies["density_pruning"].function).__globals__["round_to_sum"]
    rng = np.random.default_rng(6)
    for _ in range(50):
        upper = rng.integers(0, 6, size=4)
        total = int(rng.integers(0, upper.sum() + 1))
        shares = upper * total / max(1, upper.sum())
        counts = round_to_sum(shares, upper, total)
        assert counts.sum() == total and (counts <= upper).all() and (np.abs(counts - shares) < 1).all()
        others = [x for x in itertools.product(*(range(each + 1) for each in upper)) if sum(x) == total]
        nearest = min(sum((x - shares) ** 2) for x in others)
        assert math.isclose(sum((counts - shares) ** 2), nearest, abs_tol=1e-9)
    assert round_to_sum(np.array([0.5, 0.5, 2.0]), np.array([1, 1, 2]), 3).tolist() == [1, 0, 2]


def units(array):
    wide = np.asarray(array, dtype=np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def bundles(seed, count, num_bundles=7, dimension=5):
    """Draw images around some directions, some bundles narrow and some wide."""
    rng = np.random.default_rng(seed)
    which = rng.integers(num_bundles, size=count)
    centres, widths = rng.normal(size=(num_bundles, dimension)), rng.uniform(0.05, 0.6, size=(num_bundles, 1))
    images = centres[which] + widths[which] * rng.normal(size=(count, dimension))
    return make_view(np.sort(rng.choice(10**6, count, replace=False)), images=images)


def density_pruning_by_loops(view, *, keep, clusters, temperature, min_balance, prefer, seed):
    """The rule step by step, from the centroids on; the quadratic program by scipy."""
    features = view.features["l14_img"]
    images = units(features)
    centroids = units(fit_centroids(features, np.arange(len(images)), clusters, seed))
    members = {k: [] for k in range(clusters)}
    distance = {}
    for i, image in enumerate(images):
        cosines = [float(image @ centroid) for centroid in centroids]
        nearest = max(range(clusters), key=lambda k: cosines[k])
        members[nearest].append(i)
        distance[i] = 1 - cosines[nearest]
    complexity = {}
    for k in range(clusters):
        to_others = sorted(1 - float(centroids[k] @ centroids[j]) for j in range(clusters) if j != k)[:20]
        if members[k]:
            complexity[k] = np.mean(to_others or [0]) * np.mean([distance[i] for i in members[k]])
    mean = np.mean(list(complexity.values()))
    weights = np.array([math.exp(complexity.get(k, mean) / temperature) for k in range(clusters)])
    wanted = round(keep * len(images))
    least = [max(0, min(int(wanted / clusters * min_balance), len(members[k]) - 1)) for k in range(clusters)]
    sizes = np.array([len(members[k]) for k in range(clusters)])
    shares = solve_by_scipy(wanted * weights / weights.sum(), np.array(least), sizes, wanted).round(5)
    counts = [int(share) for share in shares]
    for k in sorted(range(clusters), key=lambda k: counts[k] - shares[k])[: wanted - sum(counts)]:
        counts[k] += 1
    kept = []
    for k in range(clusters):
        sign = -1 if prefer == "hard" else 1
        kept += sorted(members[k], key=lambda i: sign * distance[i])[: counts[k]]
    numbers = [int(text, 16) for text in format_uids(view.uids)]
    return sorted(numbers[i] for i in kept)


@pytest.mark.parametrize("prefer", ["hard", "easy"])
@pytest.mark.parametrize(
    ("clusters", "keep", "temperature", "min_balance"),
    [(7, 0.4, 0.1, 0.5), (7, 0.8, 0.05, 0.0), (25, 0.3, 0.02, 0.9), (1, 0.5, 0.1, 0.5), (40, 0.9, 1.0, 1.0)],
)
def test_density_pruning_agrees_with_the_rule_step_by_step(
    strategies, clusters, keep, temperature, min_balance, prefer
):
    view = bundles(7, 160)
    options = {
        "clusters": clusters,
        "keep": keep,
        "temperature": temperature,
        "min_balance": min_balance,
        "prefer": prefer,
        "seed": 3,
    }
    expected = density_pruning_by_loops(view, **options)
    assert len(expected) == round(keep * 160)
    assert chosen(strategies, "density_pruning", view, **options) == expected


def test_density_pruning_takes_more_of_a_wide_cluster_and_its_outermost(strategies):
    # Two bundles of directions, 1 and 8 degrees wide on each side.
    angles = np.radians([0, 1, -1, 0.5, 90, 98, 82, 86])
    view = make_view(range(1, 9), images=np.stack([np.cos(angles), np.sin(angles)], axis=1))
    options = {"clusters": 2, "keep": 0.5, "temperature": 1e-4, "min_balance": 0.5}
    # The wide one's share is all four wanted, but the narrow one keeps half of an equal share: 1.
    assert chosen(strategies, "density_pruning", view, **options) == [3, 6, 7, 8]
    assert chosen(strategies, "density_pruning", view, **{**options, "min_balance": 0.0}) == [5, 6, 7, 8]
    # The means are at 0.125 and 89 degrees.
    assert chosen(strategies, "density_pruning", view, prefer="easy", **options) == [1, 5, 7, 8]


def test_density_pruning_gives_ties_to_the_smaller_uid_and_none_without_embedding(strategies):
    images = [[1, 0], [2, 0], [0, 0], [1, 0], [np.nan, 1], [3, 0]]
    view = make_view([9, 4, 1, 7, 2, 8], images=images)
    assert chosen(strategies, "density_pruning", view, clusters=1, keep=0.5) == [4, 7, 8]
    assert chosen(strategies, "density_pruning", view, clusters=1, keep=1.0) == [4, 7, 8, 9]


def test_density_pruning_does_not_depend_on_the_order_of_rows(strategies):
    view = bundles(8, 200)
    view.uids[50:60] = view.uids[50]
    view.features["l14_img"][100:105] = np.nan
    for seed in (0, 1):
        expected = chosen(strategies, "density_pruning", view, clusters=12, seed=seed)
        assert len(expected) == 80
        for order in range(3):
            assert chosen(strategies, "density_pruning", shuffled(view, order), clusters=12, seed=seed) == expected


def test_density_pruning_runs_in_the_engine_on_either_clip(strategies, tmp_path):
    view = bundles(9, 120)
    pool = write_pool(tmp_path / "p", {"uid": format_uids(view.uids)}, features={"b32_img": view.features["l14_img"]})
    outcome = run_filters(Pool(pool), [Rule("density_pruning", {"arch": "b32", "clusters": 9})])
    drawn = [int(text, 16) for text in format_uids(outcome.subset.uids)]
    assert drawn == chosen(strategies, "density_pruning", view, clusters=9)


@pytest.mark.parametrize(
    ("name", "options"),
    [("semdedup", {"clusters": 5, "epsilon": 0.02}), ("near_dedup", {}), ("density_pruning", {"clusters": 5})],
)
def test_embeddings_may_be_mapped_from_a_file_that_cannot_be_written(strategies, tmp_path, name, options):
    view = bundles(10, 300)
    np.save(tmp_path / "images.npy", view.features["l14_img"])
    mapped = PoolView(view.uids, view.columns, {"l14_img": np.load(tmp_path / "images.npy", mmap_mode="r")})
    expected = chosen(strategies, name, view, **options)
    assert 0 < len(expected) < 300 and chosen(strategies, name, mapped, **options) == expected


def test_blocks_of_any_size_give_the_same_clusters(monkeypatch):
    view = bundles(11, 300)
    view.features["l14_img"][7] = 0
    images = view.features["l14_img"]

    def clusters():
        rows, without_embedding = embedded_rows(view.uids, images)
        centroids = fit_centroids(images, rows, 6, seed=0)
        assert without_embedding.tolist() == [7]
        return rows, centroids, *nearest_centroids(images, rows, centroids)

    whole = clusters()
    monkeypatch.setattr("benchmark.toolbox.clusters.BLOCK_ROWS", 13)
    monkeypatch.setattr("benchmark.toolbox.embeddings.BLOCK_ROWS", 13)
    for one, other in zip(whole, clusters(), strict=True):
        assert np.array_equal(one, other)


def test_many_rows_are_clustered_by_a_sample_of_them(strategies, monkeypatch):
    view = bundles(12, 400)
    images = view.features["l14_img"]
    whole = fit_centroids(images, np.arange(400), 7, seed=0)
    monkeypatch.setattr("benchmark.toolbox.clusters.MAX_FITTED", 100)
    monkeypatch.setattr("benchmark.toolbox.clusters.FITTED_PER_CLUSTER", 5)
    sampled = fit_centroids(images, np.arange(400), 7, seed=0)
    assert not np.array_equal(sampled, whole) and np.allclose(np.linalg.norm(sampled, axis=1), 1)
    drawn = np.sort(np.random.default_rng(0).choice(400, 100, replace=False))
    assert np.array_equal(fit_centroids(images, drawn, 7, seed=0), sampled)
    expected = chosen(strategies, "semdedup", view, clusters=7)
    assert chosen(strategies, "semdedup", shuffled(view, 0), clusters=7) == expected
