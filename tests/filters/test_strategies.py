"""The published strategies beyond DataComp's baselines, each against a brute-force version of its rule."""

import inspect
from random import Random

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from scipy.special import logsumexp

from benchmark.embedded.captions import write_caption
from benchmark.embedded.noise import draw_word
from benchmark.embedded.pictures import draw_picture, load_font
from benchmark.embedded.world import draw_random_scene
from benchmark.models.build import build_model, build_tokenizer
from benchmark.models.reference import ARCHITECTURE, load_reference_model, to_images
from benchmark.pool.pool import Pool
from benchmark.pool.uids import format_uids, parse_uids
from benchmark.selection.assets import find_assets
from benchmark.selection.engine import run_filters
from benchmark.selection.rules import Cut, Rule, make_rule
from benchmark.selection.views import PoolView
from benchmark.toolbox.embeddings import cluster_centres, nearest_rows
from benchmark.toolbox.encoders import load_encoder
from benchmark.toolbox.language import count_tokens
from tests.conftest import uid, user_error, write_pool

ENGLISH = "a photo of a small brown dog in the garden"
GERMAN = "Ein kleiner brauner Hund im Garten vor dem Haus"


def make_view(numbers, images, texts=None):
    """Make a pool of rows with these uids and embeddings, as float16."""
    features = {"l14_img": np.asarray(images, dtype=np.float16)}
    if texts is not None:
        features["l14_txt"] = np.asarray(texts, dtype=np.float16)
    return PoolView(
        parse_uids([uid(int(number)) for number in numbers]), pd.DataFrame(index=range(len(numbers))), features
    )


def shuffled(view, seed=0):
    order = np.random.default_rng(seed).permutation(len(view.uids))
    return PoolView(view.uids[order], view.columns, {name: array[order] for name, array in view.features.items()})


def chosen(strategies, name, view, **options):
    """Return the numbers of the chosen uids, repeats kept."""
    return [int(text, 16) for text in format_uids(strategies[name].function(view, **options).uids)]


def random_pairs(seed, count, dimension=6):
    """Draw pairs that agree to some degree, in the order of uids; the uids are not 0..count-1."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(count, dimension))
    texts = images + rng.normal(size=(count, dimension)) * rng.uniform(0.1, 3, size=(count, 1))
    return make_view(np.sort(rng.choice(10**6, count, replace=False)), images, texts)


def units(array):
    wide = array.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def numbers_of(view):
    return np.array([int(text, 16) for text in format_uids(view.uids)])


def with_blocks(monkeypatch, strategies, name, rows):
    monkeypatch.setitem(inspect.unwrap(strategies[name].function).__globals__, "BLOCK_ROWS", rows)


SELECTORS = ["negcliploss", "rank_in_negatives", "semdedup", "near_dedup"]


@pytest.mark.parametrize("name", SELECTORS)
def test_selectors_do_not_depend_on_the_order_of_rows(strategies, name):
    view = random_pairs(1, 200, dimension=3)
    view.uids[50:60] = view.uids[50]  # one uid on ten rows that hold different things
    view.features["l14_img"][100:105] = np.nan
    options = {"batch_size": 30} if name == "negcliploss" else {}
    for seed in (0, 1):
        expected = chosen(strategies, name, view, seed=seed, **options)
        assert 0 < len(expected) < 200
        for order in range(3):
            assert chosen(strategies, name, shuffled(view, order), seed=seed, **options) == expected


@pytest.mark.parametrize("name", SELECTORS)
def test_selectors_run_in_the_engine_on_either_clip(strategies, tmp_path, name):
    view = random_pairs(2, 100, dimension=3)
    features = {"b32_img": view.features["l14_img"], "b32_txt": view.features["l14_txt"]}
    pool = write_pool(tmp_path / "p", {"uid": format_uids(view.uids)}, features=features)
    outcome = run_filters(Pool(pool), [Rule(name, {"arch": "b32"})])
    assert [int(text, 16) for text in format_uids(outcome.subset.uids)] == chosen(strategies, name, view)
    with user_error("array-missing", match="'l14_img'"):
        run_filters(Pool(pool), [Rule(name, {"arch": "l14"})])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("negcliploss", {"keep": 30.0}, "negcliploss.keep=30.0 "),
        ("negcliploss", {"tau": 0.001}, "negcliploss.tau=0.001 .*0.003"),
        ("negcliploss", {"batch_size": 0}, "negcliploss.batch_size=0 .*1"),
        ("rank_in_negatives", {"negatives": 20}, "negatives=20 .* 19"),
        ("rank_in_negatives", {"negatives": 5, "top": 6}, "top=6 .*negatives=5"),
        ("semdedup", {"keep": "soft"}, "semdedup.keep='soft' .*hard or easy"),
        ("semdedup", {"epsilon": -0.1}, "semdedup.epsilon=-0.1 "),
        ("semdedup", {"clusters": 21}, "semdedup.clusters=21 .*20"),
        ("near_dedup", {"min_similarity": 98.0}, "near_dedup.min_similarity=98.0 "),
    ],
)
def test_options_out_of_range_are_refused(strategies, name, options, message):
    with pytest.raises(ValueError, match=message):
        strategies[name].function(random_pairs(0, 20), **options)


def laion2b_verdicts(strategies, texts, similarity, **options):
    rows = pd.DataFrame({"text": pd.Series(texts, dtype=str), "clip_b32_similarity_score": similarity})
    return strategies["laion2b"].function(rows, **options).tolist()


def test_laion2b_keeps_english_pairs_of_similarity_028(strategies):
    similarity = np.array([0.3, 0.3, 0.27, 0.27], dtype=np.float32)
    assert laion2b_verdicts(strategies, [ENGLISH, GERMAN, ENGLISH, GERMAN], similarity) == [True, False, False, False]
    assert laion2b_verdicts(strategies, [ENGLISH] * 4, similarity, min_similarity=0.2) == [True] * 4


def test_laion2b_compares_in_the_columns_own_type(strategies):
    rounded = np.float32(0.26)  # below 0.26 as a float64 number
    assert laion2b_verdicts(strategies, [ENGLISH], np.array([rounded]), min_similarity=0.26) == [True]
    wide = np.array([rounded], dtype=np.float64)
    assert laion2b_verdicts(strategies, [ENGLISH], wide, min_similarity=0.26) == [False]


def test_laion2b_has_missing_values_where_its_columns_do(strategies):
    similarity = np.array([0.3, np.nan, 0.3], dtype=np.float32)
    assert laion2b_verdicts(strategies, [None, ENGLISH, ENGLISH], similarity) == [pd.NA, pd.NA, True]


def test_laion2b_names_a_missing_language_model(strategies, tmp_path):
    with user_error("asset-not-found", match="filters.laion2b.language_model"):
        rule = make_rule("laion2b", {"language_model": str(tmp_path / "no.bin")})
        raise find_assets(rule.strategy, rule.options, tmp_path)[1][0]


def negcliploss_scores(view, batch_size, partitions, tau, seed):
    """The formula, pair by pair, in float64."""
    images, texts = units(view.features["l14_img"]), units(view.features["l14_txt"])
    count = len(images)
    rng = np.random.default_rng(seed)
    scores = np.zeros(count)
    for _ in range(partitions):
        drawn = list(rng.permutation(count))
        for start in range(0, count, batch_size):
            batch = drawn[start : start + batch_size]
            members = batch + drawn[:start][: batch_size - len(batch)]
            for i in batch:
                to_texts = logsumexp([images[i] @ texts[j] / tau for j in members])
                to_images = logsumexp([images[j] @ texts[i] / tau for j in members])
                scores[i] += (images[i] @ texts[i] - tau / 2 * (to_texts + to_images)) / partitions
    return scores


@pytest.mark.parametrize("tau", [0.01, 0.07])
@pytest.mark.parametrize("batch_size", [200, 50, 32])  # one batch, equal batches, a last one that is filled up
def test_negcliploss_keeps_the_highest_of_the_papers_formula(strategies, monkeypatch, batch_size, tau):
    with_blocks(monkeypatch, strategies, "negcliploss", 13)
    view = random_pairs(3, 100)
    scores = negcliploss_scores(view, batch_size, 3, tau, seed=5)
    ranked = numbers_of(view)[np.argsort(-scores)]
    for keep in (0.05, 0.3, 0.31, 0.9):
        options = {"keep": keep, "batch_size": batch_size, "partitions": 3, "tau": tau, "seed": 5}
        assert chosen(strategies, "negcliploss", view, **options) == sorted(ranked[: round(keep * 100)])


def test_negcliploss_survives_cosines_from_minus_one_to_one(strategies):
    images = [[1, 0], [-1, 0], [0, 1], [1, 0]]
    texts = [[1, 0], [-1, 0], [0, -1], [-1, 0]]  # the third and fourth contradict their images
    view = make_view([1, 2, 3, 4], images, texts)
    assert chosen(strategies, "negcliploss", view, keep=0.5, tau=0.003) == [1, 2]


def test_negcliploss_gives_ties_to_the_smaller_uid(strategies):
    view = make_view([7, 3, 9, 5], np.eye(4), np.eye(4))
    assert chosen(strategies, "negcliploss", view, keep=0.5) == [3, 5]


def test_negcliploss_never_keeps_a_pair_without_embedding(strategies):
    view = random_pairs(4, 40)
    numbers = numbers_of(view)
    expected = chosen(strategies, "negcliploss", view, keep=0.5)
    with_holes = make_view(
        [*numbers, 1, 2],
        np.concatenate([view.features["l14_img"], np.full((1, 6), np.nan), np.zeros((1, 6))]),
        np.concatenate([view.features["l14_txt"], np.ones((2, 6))]),
    )
    assert chosen(strategies, "negcliploss", with_holes, keep=20 / 42) == expected
    assert chosen(strategies, "negcliploss", with_holes, keep=1.0) == sorted(numbers)


def test_negcliploss_draws_batches_by_the_seed(strategies):
    view = random_pairs(5, 100)
    subsets = {tuple(chosen(strategies, "negcliploss", view, batch_size=5, seed=seed)) for seed in range(5)}
    assert len(subsets) > 1 and all(len(subset) == 30 for subset in subsets)


def test_rank_in_negatives_agrees_with_full_ranks_where_all_others_are_negatives(strategies, monkeypatch):
    with_blocks(monkeypatch, strategies, "rank_in_negatives", 13)
    view = random_pairs(6, 100)
    cosines = units(view.features["l14_img"]) @ units(view.features["l14_txt"]).T
    caption_ranks = [1 + sum(cosines[i, j] > cosines[i, i] for j in range(100)) for i in range(100)]
    image_ranks = [1 + sum(cosines[j, i] > cosines[i, i] for j in range(100)) for i in range(100)]
    for top in (1, 5, 20):
        keep = [a <= top and b <= top for a, b in zip(caption_ranks, image_ranks, strict=True)]
        expected = list(numbers_of(view)[keep])
        assert 0 < len(expected) < 100
        assert chosen(strategies, "rank_in_negatives", view, negatives=99, top=top, seed=4) == expected


def test_rank_in_negatives_draws_different_others_by_the_seed(strategies, monkeypatch):
    with_blocks(monkeypatch, strategies, "rank_in_negatives", 13)
    view = random_pairs(7, 100)
    cosines = units(view.features["l14_img"]) @ units(view.features["l14_txt"]).T
    for seed in (0, 3):
        rng = np.random.default_rng(seed)
        drawn = list(rng.permutation(100))
        distances = 1 + rng.choice(99, 20, replace=False)
        expected = []
        for place, i in enumerate(drawn):
            others = {drawn[(place + distance) % 100] for distance in distances}
            assert len(others) == 20 and i not in others
            better_captions = sum(cosines[i, j] > cosines[i, i] for j in others)
            better_images = sum(cosines[j, i] > cosines[i, i] for j in others)
            if better_captions < 3 and better_images < 3:
                expected.append(numbers_of(view)[i])
        assert chosen(strategies, "rank_in_negatives", view, negatives=20, top=3, seed=seed) == sorted(expected)
    subsets = {tuple(chosen(strategies, "rank_in_negatives", view, seed=seed)) for seed in range(5)}
    assert len(subsets) > 1


def test_rank_in_negatives_passes_less_than_a_pair_in_8_of_noise(strategies):
    rng = np.random.default_rng(8)
    view = make_view(range(2000), rng.normal(size=(2000, 16)), rng.normal(size=(2000, 16)))
    # Each rank is within 8 of 64 for 1 pair in 8, and the two agree in part, as both rank the same cosine.
    assert 2000 / 64 < len(chosen(strategies, "rank_in_negatives", view)) < 2000 / 8


def test_rank_in_negatives_lets_ties_pass(strategies):
    view = make_view(range(10), np.random.default_rng(0).normal(size=(10, 4)), np.ones((10, 4)))
    view.features["l14_img"][:] = view.features["l14_img"][0]
    assert chosen(strategies, "rank_in_negatives", view, negatives=9, top=1) == list(range(10))


def test_rank_in_negatives_never_takes_a_pair_without_embedding(strategies):
    view = random_pairs(9, 30)
    numbers = list(numbers_of(view))
    expected = chosen(strategies, "rank_in_negatives", view, negatives=29, top=3)
    with_hole = make_view(
        [1, *numbers],
        np.concatenate([np.full((1, 6), np.nan), view.features["l14_img"]]),
        np.concatenate([np.ones((1, 6)), view.features["l14_txt"]]),
    )
    assert chosen(strategies, "rank_in_negatives", with_hole, negatives=29, top=3) == expected


def groups_of_images(seed, count, dimension=8):
    """Draw images of which many are near others, and some equal."""
    rng = np.random.default_rng(seed)
    originals = rng.normal(size=(count // 3, dimension))
    images = originals[rng.integers(len(originals), size=count)]
    images = images + rng.normal(size=images.shape) * rng.choice([0, 0.1, 0.3], size=(count, 1))
    return make_view(np.sort(rng.choice(10**6, count, replace=False)), images)


@pytest.mark.parametrize("keep", ["hard", "easy"])
@pytest.mark.parametrize("epsilon", [0.01, 0.05, 0.3])
def test_semdedup_drops_what_is_near_to_an_earlier_image_of_its_cluster(strategies, monkeypatch, keep, epsilon):
    with_blocks(monkeypatch, strategies, "semdedup", 13)
    view = groups_of_images(10, 150)
    images = units(view.features["l14_img"])
    centre = units(images.mean(axis=0, keepdims=True))[0]
    distance = [round(float(1 - image @ centre), 9) for image in images]  # equal images are at equal distances
    ordered = sorted(range(150), key=lambda i: (-distance[i] if keep == "hard" else distance[i], i))
    kept = [
        i for place, i in enumerate(ordered) if not any(images[i] @ images[j] > 1 - epsilon for j in ordered[:place])
    ]
    expected = sorted(numbers_of(view)[kept])
    assert 0 < len(expected) < 150
    assert chosen(strategies, "semdedup", view, clusters=1, epsilon=epsilon, keep=keep) == expected


def test_semdedup_compares_within_clusters_alone(strategies):
    # Two bundles of directions; within each, neighbours are 2 degrees apart.
    angles = np.radians([0, 2, 4, 90, 92, 94])
    view = make_view([1, 2, 3, 4, 5, 6], np.stack([np.cos(angles), np.sin(angles)], axis=1))
    assert chosen(strategies, "semdedup", view, clusters=2, epsilon=0.002, keep="easy") == [2, 5]
    # From the outside in: 1 and 3 are 4 degrees apart (1 - cos = 0.0024) and both stay, 2 is near to them.
    assert chosen(strategies, "semdedup", view, clusters=2, epsilon=0.002) == [1, 3, 4, 6]


def test_semdedup_keeps_the_smaller_uid_of_equal_images_and_all_without_embedding(strategies):
    images = np.array([[1, 2], [2, 4], [np.nan, 0], [0, 0], [3, -1], [np.nan, 0], [1, 2]])
    assert chosen(strategies, "semdedup", make_view([9, 4, 3, 8, 1, 3, 4], images)) == [1, 3, 3, 4, 8]
    assert chosen(strategies, "semdedup", make_view([2, 1], [[np.nan], [0]])) == [1, 2]


def test_semdedup_starts_its_clusters_by_the_seed(strategies):
    view = groups_of_images(11, 300)
    subsets = {tuple(chosen(strategies, "semdedup", view, clusters=20, seed=seed)) for seed in (0, 1, 2, 0)}
    assert len(subsets) == 3


def near_groups(view, min_similarity):
    """Follow chains of near images, one at a time: a list of lists of row numbers."""
    images = units(view.features["l14_img"])
    groups, unseen = [], set(range(len(images)))
    while unseen:
        group, frontier = [], [min(unseen)]
        unseen.remove(frontier[0])
        while frontier:
            i = frontier.pop()
            group.append(i)
            near = [j for j in sorted(unseen) if images[i] @ images[j] >= min_similarity]
            unseen.difference_update(near)
            frontier.extend(near)
        groups.append(sorted(group))
    return groups


@pytest.mark.parametrize("max_waiting", [0, 10, 2_000_000])
@pytest.mark.parametrize("min_similarity", [0.8, 0.95, 0.98])
def test_near_dedup_keeps_the_smallest_uid_of_each_chain(strategies, monkeypatch, min_similarity, max_waiting):
    with_blocks(monkeypatch, strategies, "near_dedup", 13)
    monkeypatch.setitem(inspect.unwrap(strategies["near_dedup"].function).__globals__, "MAX_WAITING_PAIRS", max_waiting)
    view = groups_of_images(12, 150)
    groups = near_groups(view, min_similarity)
    assert 1 < len(groups) < 150
    expected = [numbers_of(view)[group[0]] for group in groups]
    assert chosen(strategies, "near_dedup", view, min_similarity=min_similarity) == sorted(expected)


def test_near_dedup_draws_one_of_each_chain_by_the_seed(strategies):
    view = groups_of_images(13, 90)
    groups = [set(numbers_of(view)[group]) for group in near_groups(view, 0.95)]
    subsets = [chosen(strategies, "near_dedup", view, min_similarity=0.95, seed=seed) for seed in range(4)]
    assert len(set(map(tuple, subsets))) == 4
    for subset in subsets:
        assert sorted(len(group & set(subset)) for group in groups) == [1] * len(groups)


def test_near_dedup_joins_chains(strategies):
    angles = np.radians([8, 0, 4, 40])  # cos 4 degrees = 0.9976, cos 8 degrees = 0.9903
    images = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert chosen(strategies, "near_dedup", make_view([5, 6, 7, 8], images), min_similarity=0.995) == [5, 8]


def test_near_dedup_keeps_one_row_of_a_repeated_uid_and_all_without_embedding(strategies):
    images = np.array([[1, 2], [2, 4], [np.nan, 0], [0, 0], [3, -1], [np.nan, 0], [1, 2]])
    assert chosen(strategies, "near_dedup", make_view([9, 4, 3, 8, 1, 3, 4], images)) == [1, 3, 3, 4, 8]
    assert chosen(strategies, "near_dedup", make_view([2, 1], [[np.nan], [0]])) == [1, 2]


def masked_scores(strategies, images, texts, **options):
    rows = pd.DataFrame({"text": pd.Series(texts, dtype=str)})
    options = {"clip_model": "reference_l14", "checkpoint": None} | options
    return strategies["text_masked_clip"].function(rows, images, load_encoder(**options, device="cpu"), **options)


def plain_scores(model, tokenizer, images, texts):
    """The cosine of each pair by the model, nothing masked."""
    with torch.inference_mode():
        pictures = model.encode_image(to_images(np.stack([np.asarray(each) for each in images])), normalize=True)
        captions = model.encode_text(tokenizer(list(texts)), normalize=True)
    return (pictures * captions).sum(dim=1).numpy()


def drawn_pairs(count):
    pairs = []
    for number in range(count):
        rng = Random(f"masked/{number}")
        scene = draw_random_scene(rng)
        pairs.append((draw_picture(scene, rng), write_caption(scene, rng)))
    return [list(column) for column in zip(*pairs, strict=True)]


def test_text_masked_clip_is_the_clip_score_where_there_is_no_text(strategies):
    images, texts = drawn_pairs(100)
    expected = plain_scores(load_reference_model("b32"), build_tokenizer(ARCHITECTURE), images, texts)
    scores = masked_scores(strategies, images, texts, clip_model="reference_b32")
    differences = np.abs(scores - expected) > 1e-5
    assert scores.dtype == np.float32 and differences.sum() <= 3  # a drawing or two may look like a line of text


def test_text_masked_clip_scores_a_pair_the_same_alone_and_among_others(strategies):
    images, texts = drawn_pairs(15)
    alone = [masked_scores(strategies, [image], [text])[0] for image, text in zip(images, texts, strict=True)]
    assert masked_scores(strategies, images, texts).tolist() == alone


def test_text_masked_clip_takes_away_what_a_word_alone_earns(strategies):
    images, texts = zip(*(draw_word(Random(f"word/{number}")) for number in range(100)), strict=True)
    plain = plain_scores(load_reference_model("l14"), build_tokenizer(ARCHITECTURE), images, texts)
    masked = masked_scores(strategies, list(images), texts)
    blank = [Image.new("RGB", (32, 32), image.getpixel((16, 0))) for image in images]
    is_masked = np.abs(masked - masked_scores(strategies, blank, texts)) < 0.1
    assert plain.mean() > masked.mean() + 0.1 and is_masked.mean() > 0.9


def test_text_masked_clip_masks_a_line_and_keeps_the_rest(strategies):
    """A large picture with a line of text scores as the same picture without it."""
    picture = Image.new("RGB", (256, 256), (240, 240, 235))
    ImageDraw.Draw(picture).ellipse((60, 90, 190, 220), fill=(215, 30, 35))
    written = picture.copy()
    ImageDraw.Draw(written).text((20, 20), "BLUE SQUARE", fill=(35, 70, 205), font=load_font("DejaVuSans-Bold", 28))
    texts = ["a red circle", "a blue square"]
    clean = masked_scores(strategies, [picture] * 2, texts)
    np.testing.assert_allclose(masked_scores(strategies, [written] * 2, texts), clean, atol=1e-3)
    assert clean[0] > clean[1] + 0.2


def test_no_text_drops_words_and_keeps_drawings(strategies):
    words = [draw_word(Random(f"word/{number}"))[0] for number in range(50)]
    drawings = drawn_pairs(50)[0]
    large = Image.new("RGB", (256, 200), (240, 240, 235))
    written = large.copy()
    ImageDraw.Draw(written).text((20, 20), "BLUE SQUARE", fill=(35, 70, 205), font=load_font("DejaVuSans-Bold", 28))
    images = [*words, large, *drawings, written]  # of two sizes, mixed
    kept = strategies["no_text"].function(pd.DataFrame(index=range(len(images))), images)
    assert kept.dtype == bool and kept[:50].mean() < 0.1 and kept[51:101].mean() > 0.9
    assert kept[50] and not kept[101]


def test_text_masked_clip_has_a_missing_value_for_a_missing_caption(strategies):
    images, texts = drawn_pairs(2)
    assert np.isnan(masked_scores(strategies, images, [None, texts[1]])).tolist() == [True, False]
    assert np.isnan(masked_scores(strategies, images, [None, None])).all()


def test_text_masked_clip_runs_any_open_clip_model(strategies, tmp_path):
    model = build_model("pico_cnn", seed=3).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pt")
    images, texts = drawn_pairs(10)
    prepare = open_clip.image_transform(32, is_train=False)
    with torch.inference_mode():
        pictures = model.encode_image(torch.stack([prepare(image) for image in images]), normalize=True)
        captions = model.encode_text(build_tokenizer("pico_cnn")(texts), normalize=True)
    expected = (pictures * captions).sum(dim=1).numpy()
    for name in ("weights.safetensors", "weights.pt"):
        options = {"clip_model": "pico_cnn", "checkpoint": str(tmp_path / name)}
        np.testing.assert_allclose(masked_scores(strategies, images, texts, **options), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "code", "value"),
    [
        ({"clip_model": "reference_b16"}, "unknown-model", "reference_b32 or reference_l14"),
        ({"checkpoint": "x.pt"}, "option-conflict", "checkpoint='x.pt' .*reference_l14"),
        ({"clip_model": "ViT-B-32"}, "option-missing", "clip_model='ViT-B-32' .*checkpoint="),
        ({"clip_model": "ViT-B-32", "checkpoint": "no.pt"}, "checkpoint-not-found", "no.pt"),
        ({"clip_model": "ViT-B-3", "checkpoint": __file__}, "unknown-model", "'ViT-B-3'"),
    ],
)
def test_text_masked_clip_refuses_what_it_cannot_load(strategies, options, code, value):
    images, texts = drawn_pairs(1)
    with user_error(code, match=value):
        masked_scores(strategies, images, texts, **options)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        ("wedding", 1),
        ("wedding\n", 2),
        ("\n\n", 2),
        ("a b\tc\vd\fe\rf\0g", 7),
        (" a  b ", 2),
        ("a\u00a0b", 1),
        ("a\u3000b\x1cc\x85d", 1),
    ],
)
def test_tokens_are_those_of_fasttexts_tokenize(text, tokens):
    assert count_tokens(text) == tokens  # as fasttext 0.9.3 counts


def test_nearest_rows_are_those_of_the_products(monkeypatch):
    monkeypatch.setattr("benchmark.toolbox.embeddings.BLOCK_ROWS", 13)
    rng = np.random.default_rng(14)
    vectors, centres = rng.normal(size=(100, 6)).astype(np.float16), rng.normal(size=(50, 6)).astype(np.float32)
    expected = [int(np.argmax([row @ centre for centre in centres.astype(float)])) for row in vectors.astype(float)]
    assert nearest_rows(vectors, centres).tolist() == expected
    assert nearest_rows(vectors, centres[:1]).tolist() == [0] * 100


def test_nearest_rows_tell_what_float32_cannot_and_give_ties_to_the_first():
    # The products differ by 2^-26; the third centre is the second once more.
    centres = np.array([[1, 0], [1, 2**-13], [1, 2**-13], [-1, 0]], dtype=np.float32)
    assert nearest_rows(np.array([[1, 2**-13], [1, -(2**-13)], [-1, 0]]), centres).tolist() == [1, 0, 3]
    rng = np.random.default_rng(15)
    vectors = rng.normal(size=(200, 96)).astype(np.float16)
    near = rng.normal(size=96).astype(np.float32)
    centres = np.concatenate([[near * np.float32(1 + n * 2**-23)] for n in (0, 1, 3, 2)])
    expected = [int((centres.astype(float) @ row).argmax()) for row in vectors.astype(float)]
    assert len(set(expected)) > 1
    for start in (0, 1, 7):  # whatever stands beside a vector
        assert nearest_rows(vectors[start:], centres).tolist() == expected[start:]


def test_cluster_centres_are_where_lloyds_iterations_end():
    rng = np.random.default_rng(16)
    images = np.concatenate([centre + rng.normal(size=(40, 4)) * 0.1 for centre in 5 * np.eye(4)]).astype(np.float16)
    for seed in (0, 1):
        centres = cluster_centres(images, 4, seed)
        assert centres.shape == (4, 4) and centres.dtype == np.float32
        wide = images.astype(np.float64)
        nearest = ((wide[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
        for number, centre in enumerate(centres):
            assert np.allclose(wide[nearest == number].mean(axis=0), centre, atol=1e-5)
        assert (cluster_centres(images, 4, seed) == centres).all()
    assert (cluster_centres(images, 7, 0) != cluster_centres(images, 7, 1)).any()


def save(path, array):
    np.save(path, np.asarray(array))
    return str(path)


def image_based_verdicts(strategies, tmp_path, images, centroids, targets, texts=None, **options):
    """Run on rows with these embeddings; `targets` are several files."""
    rows = pd.DataFrame({"text": pd.Series([ENGLISH] * len(images) if texts is None else texts, dtype=str)})
    return (
        strategies["image_based"]
        .function(
            rows,
            {"l14_img": np.asarray(images, dtype=np.float16)},
            centroids=save(tmp_path / "centroids.npy", np.asarray(centroids, dtype=np.float32)),
            targets=[save(tmp_path / f"targets_{n}.npy", part) for n, part in enumerate(targets)],
            **options,
        )
        .tolist()
    )


def test_image_based_keeps_images_of_clusters_that_have_a_target(strategies, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmark.toolbox.embeddings.BLOCK_ROWS", 13)
    rng = np.random.default_rng(17)
    images, centroids = rng.normal(size=(150, 6)).astype(np.float16), rng.normal(size=(40, 6)) * rng.uniform(1, 2)
    targets = [rng.normal(size=(30, 6)).astype(np.float32), rng.normal(size=(5, 6)).astype(np.float16)]

    def cluster(image):
        return max(range(40), key=lambda k: float(image.astype(float) @ centroids.astype(np.float32)[k].astype(float)))

    wanted = {cluster(target) for part in targets for target in part}
    expected = [cluster(image) in wanted for image in images]
    assert 20 < sum(expected) < 130
    assert image_based_verdicts(strategies, tmp_path, images, centroids, targets) == expected


def test_image_based_takes_the_inner_product_and_not_the_distance(strategies, tmp_path):
    # By distance or cosine the image is nearest to the first; by inner product to the second, which has no target.
    centroids, target = [[1, 0], [3, 2]], np.array([[1.0, -2]])
    assert image_based_verdicts(strategies, tmp_path, [[1, 0], [0, -1]], centroids, [target]) == [False, True]


def test_image_based_has_its_own_caption_rule(strategies, tmp_path):
    texts = [ENGLISH, GERMAN, "wedding", "wedding\n", "a b c", "my dog", "of", None, ENGLISH, ENGLISH]
    images = [[1.0, 0]] * 8 + [[0, 0], [np.nan, 1]]  # zeros are in the first cluster, as all tie
    verdicts = image_based_verdicts(strategies, tmp_path, images, [[1, 0]], [np.ones((1, 2))], texts)
    # "my dog" has two words and six characters, which is enough here.
    assert verdicts == [True, False, False, True, False, True, False, pd.NA, True, pd.NA]


def test_image_based_follows_a_target_file_that_changes(strategies, tmp_path):
    images, centroids = [[1, 0], [0, 1]], np.eye(2)
    assert image_based_verdicts(strategies, tmp_path, images, centroids, [[[2.0, 1]]]) == [True, False]
    assert image_based_verdicts(strategies, tmp_path, images, centroids, [[[1.0, 2], [1, 3]]]) == [False, True]


@pytest.mark.parametrize("name", ["image_based", "normsim"])
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((3, 3)), r"targets.npy .*\(3, 3\) .*float64.*\(rows, 2\)"),
        (np.ones((0, 2)), r"targets.npy .*\(0, 2\)"),
        (np.ones((3, 2), dtype=np.int64), "int64"),
        (np.array([[1, 2], [3, np.nan]]), "row 1 .*targets.npy"),
        (np.array([[0.0, 0], [3, 1]]), "row 0 .*targets.npy"),
        (np.array([[None, 1]]), "targets.npy"),
    ],
)
def test_targets_that_do_not_fit_are_named(strategies, tmp_path, name, array, message):
    options = {"targets": [save(tmp_path / "targets.npy", array)]}
    if name == "image_based":
        options["centroids"] = save(tmp_path / "centroids.npy", np.eye(2))
    rows = pd.DataFrame({"text": [ENGLISH]})
    with user_error("asset-invalid", match=f"filters.{name}.targets: .*{message}"):
        strategies[name].function(rows, {"l14_img": np.ones((1, 2), dtype=np.float16)}, **options)


@pytest.mark.parametrize("norm", ["max", "l2"])
def test_normsim_is_the_norm_of_the_cosines_with_all_targets(strategies, tmp_path, monkeypatch, norm):
    monkeypatch.setattr("benchmark.toolbox.embeddings.BLOCK_ROWS", 13)
    rng = np.random.default_rng(18)
    images = rng.normal(size=(50, 6)).astype(np.float16)
    parts = [rng.normal(size=(30, 6)).astype(np.float32) * 3, rng.normal(size=(4, 6)).astype(np.float16)]
    files = [save(tmp_path / f"{n}.npy", part) for n, part in enumerate(parts)]
    targets = np.concatenate([units(part) for part in parts])
    expected = [np.linalg.norm(targets @ image, ord=np.inf if norm == "max" else 2) for image in units(images)]
    if norm == "max":
        expected = [max(target @ image for target in targets) for image in units(images)]
    images = np.concatenate([images, [[0] * 6, [np.nan] * 6]])
    scores = strategies["normsim"].function(
        pd.DataFrame(index=range(52)), {"l14_img": images}, targets=files, norm=norm
    )
    assert scores.dtype == np.float32 and np.allclose(scores[:50], expected, atol=1e-6)
    assert np.isnan(scores[50:]).all()


def test_normsim_refuses_another_norm(strategies):
    with pytest.raises(ValueError, match=r"filters.normsim.norm='1'"):
        strategies["normsim"].function(pd.DataFrame(), {"l14_img": np.ones((1, 2))}, norm="1", targets=["x.npy"])


@pytest.mark.parametrize("norm", ["max", "l2"])
def test_normsim_lets_equal_images_tie(strategies, tmp_path, norm):
    rng = np.random.default_rng(19)
    images = rng.normal(size=(7, 96)).astype(np.float16)[rng.integers(7, size=1001)]
    targets = [save(tmp_path / "t.npy", rng.normal(size=(300, 96)))]
    scores = strategies["normsim"].function(
        pd.DataFrame(index=range(1001)), {"l14_img": images}, targets=targets, norm=norm
    )
    assert len(set(scores.tolist())) == 7


@pytest.mark.parametrize(("name", "cut"), [("image_based", None), ("normsim", Cut("fraction", 0.3))])
def test_filters_with_assets_run_in_the_engine_on_either_clip(strategies, tmp_path, name, cut):
    rng = np.random.default_rng(20)
    images = rng.normal(size=(60, 5)).astype(np.float16)
    columns = {"uid": [uid(n) for n in range(60)], "text": [ENGLISH] * 60}
    pool = write_pool(tmp_path / "p", columns, features={"b32_img": images})
    with user_error("asset-not-found", match=f"'{name}'.*image_"):
        run_filters(Pool(pool), [Rule(name, {"arch": "b32"}, cut)])
    (pool / "assets").mkdir()
    centroids, targets = rng.normal(size=(9, 5)).astype(np.float32), units(rng.normal(size=(3, 5))).astype(np.float32)
    save(pool / "assets" / "image_centroids_b32.npy", centroids)
    save(pool / "assets" / "image_targets_b32.npy", targets)
    outcome = run_filters(Pool(pool), [Rule(name, {"arch": "b32"}, cut)])
    if cut is None:
        wanted = set((targets @ centroids.T).argmax(axis=1).tolist())
        expected = [n for n, k in enumerate((images.astype(np.float32) @ centroids.T).argmax(axis=1)) if k in wanted]
    else:
        expected = sorted(np.argsort(-(units(images) @ targets.T).max(axis=1))[:18].tolist())
    assert [int(text, 16) for text in format_uids(outcome.subset.uids)] == expected
    assert 0 < len(expected) < 60
