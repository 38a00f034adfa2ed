"""Measure DataComp's baselines: `winnow filter` against plain loops that do per row what DataComp's code does.

    python -m scripts.perf.filter_speed --rows 1000000 2000000 --rounds 3
    python -m scripts.perf.filter_speed --memory --rows 1600000

Every measurement is a whole process; CPU seconds count, and the slope between two sizes of pool leaves the start of a
process out. Prints Markdown tables. README.md beside this file says what each row means.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.pool.pool import Pool
from benchmark.pool.subset import Subset
from benchmark.pool.uids import UID_DTYPE, sort_uids
from benchmark.runtime.files import atomic_path
from benchmark.runtime.paths import cache_dir
from benchmark.toolbox.language import count_tokens, languages_of, load_language_model
from benchmark.toolbox.wordnet import find_wordnet, load_wordnet
from scripts.perf.process import Timing, run_measured

SHARD_ROWS = 100_000  # of a metadata shard, as in CommonPool's small pool
DIMENSION = 768
SCORE = "clip_l14_similarity_score"
FRACTION = 0.3
FILTERS = ("no_filter", "clip_score", "basic", "laion2b", "text_based")
KEPT = ("basic", "laion2b", "text_based")  # whose values the engine keeps; the others copy a column
LOOPS = ("clip_score", "basic")  # compared at the size of the pool; text_based's loop has `--loop-rows`
MEMORY_SHARDS = (1, 4, 16)

ENGLISH = """the a of and in with for on by at from new best red black white blue green home house garden photo picture
image sale free shop online women men kids girl boy dog cat bird car street city night summer winter wedding party
design vintage wooden leather cotton gold silver set kit how to make your our my is are was this that old young small
large beautiful happy day world map book music art print poster shirt dress shoes bag watch phone case cover"""
OTHERS = (  # words of a language each; what the captions of other languages are composed of
    "der die das und mit für ein eine neue schöne Haus Garten Hund Straße Kinder Bild im von auf günstig kaufen",
    "le la les et avec pour un une nouvelle belle maison jardin chien rue enfants photo dans sur acheter été",
    "el la los y con para un una nueva casa jardín perro calle niños foto en de comprar mañana años",
    "o os e com para um uma nova casa jardim cachorro rua crianças foto em do comprar não promoção",
    "i la di con per un una nuova casa giardino cane strada bambini foto nel più acquista",
    "de het een en met voor nieuwe huis tuin hond straat kinderen foto van kopen",
    "ve bir bu için ile yeni güzel ev bahçe köpek sokak çocuk fotoğraf ucuz",
    "и в на с для новый красивый дом сад собака улица дети фото купить",
    "新しい 家 庭 犬 通り 子供 写真 の と に 購入 送料無料",
    "新 漂亮 房子 花园 狗 街 孩子 照片 的 和 在 购买",
    "في من على بيت حديقة كلب شارع أطفال صورة جديد شراء",
    "บ้าน สวน สุนัข ถนน เด็ก ภาพ ใหม่ ซื้อ",
)
CODES = "IMG_2041.jpg DSC-0032 1200x800 no.5 #12 USB-C 3.0 2019 V2 XL 50ml A4 - | / 100% (2)"
REPEATED = ("image", "Share this", "Product photo", "logo", "View larger image", "Picture of the day", "Untitled photo")


def make_pool(pool_dir: Path, rows: int, *, seed: int = 0, shard_rows: int = SHARD_ROWS) -> None:
    """Write the metadata of a pool; one that is there stays.

    Half of the captions are English, two thirds long enough for `basic`, and three fifths of the images large enough:
    about 22 % pass it, as 23 % do of CommonPool. 3 % of the captions are some that come again and again.
    """
    english = np.array(ENGLISH.split() + _nouns())
    others = [np.array(words.split()) for words in OTHERS]
    for number, start in enumerate(range(0, rows, shard_rows)):
        path = pool_dir / "metadata" / f"{number:032x}.parquet"
        if path.exists():
            continue
        count = min(shard_rows, rows - start)
        rng = np.random.default_rng((seed, number))
        spelt = rng.bytes(16 * count).hex()
        sides = np.exp(rng.normal(5.82, 0.8, (count, 1)) + rng.normal(0, 0.35, (count, 2))).astype(np.int64)
        scores = {name: rng.normal(0.2, 0.05, count).astype(np.float32) for name in ("b32", "l14")}
        columns = {
            "uid": [spelt[32 * row : 32 * row + 32] for row in range(count)],
            "text": _captions(rng, count, english, others),
            "original_width": sides[:, 0],
            "original_height": sides[:, 1],
            **{f"clip_{name}_similarity_score": values for name, values in scores.items()},
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            pq.write_table(pa.table(columns), temporary)


def add_embeddings(pool_dir: Path, centroids: int, *, dimension: int = DIMENSION) -> None:
    """Write an .npz beside each metadata shard, and centroids and targets: unit vectors around one, as CLIP's are."""
    rng = np.random.default_rng(1)
    common = rng.normal(size=dimension) / dimension**0.5

    def draw(count: int) -> np.ndarray:
        rows = rng.standard_normal((count, dimension), dtype=np.float32) / dimension**0.5 + common
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    (pool_dir / "assets").mkdir(exist_ok=True)
    for path in sorted((pool_dir / "metadata").glob("*.parquet")):
        with atomic_path(path.with_suffix(".npz")) as temporary, temporary.open("wb") as file:
            np.savez(file, l14_img=draw(pq.read_metadata(path).num_rows).astype(np.float16))
    np.save(pool_dir / "assets" / "image_centroids_l14.npy", draw(centroids))
    np.save(pool_dir / "assets" / "image_targets_l14.npy", draw(64))


# Each leg below is the work of one process: what it keeps is written as a subset.


def loop_clip_score(pool_dir: Path) -> np.ndarray:
    """Keep the highest scores: a full sort for the threshold, then each uid read by `int`."""
    paths = sorted((pool_dir / "metadata").glob("*.parquet"))
    scores = pd.concat([pd.read_parquet(path, columns=[SCORE]) for path in paths])[SCORE].to_numpy()
    # The last score that exactly the fraction reaches, so that without ties both keep the same.
    threshold = -np.sort(-scores)[round(len(scores) * FRACTION) - 1]
    parts = []
    for path in paths:
        rows = pd.read_parquet(path, columns=["uid", SCORE])
        kept = rows[rows[SCORE] >= threshold]["uid"].to_numpy(dtype=object)
        parts.append(np.array([(int(uid[:16], 16), int(uid[16:], 16)) for uid in kept], dtype=UID_DTYPE))
    return np.sort(np.concatenate(parts))


def loop_basic(pool_dir: Path) -> np.ndarray:
    """Ask every rule of every row: the language model one caption at a time, each uid read by `int`."""
    parts = []
    for path in sorted((pool_dir / "metadata").glob("*.parquet")):
        rows = pd.read_parquet(path, columns=["uid", "text", "original_width", "original_height"])
        texts, uids = rows["text"].astype(object), rows["uid"].astype(object)  # as pandas held strings then
        is_english = texts.apply(_is_english)
        words, characters = texts.apply(lambda text: len(text.split())), texts.apply(len)
        shorter = np.minimum(rows["original_width"], rows["original_height"])
        longer = np.maximum(rows["original_width"], rows["original_height"])
        keep = is_english & (words > 2) & (characters > 5) & (shorter >= 200) & (longer / shorter <= 3.0)
        numbers = [int(uid, 16) for uid in uids]
        parts.append(np.array([divmod(number, 2**64) for number in numbers], dtype=UID_DTYPE)[keep.to_numpy()])
    return np.sort(np.concatenate(parts))


def loop_text_based(pool_dir: Path) -> np.ndarray:
    """Look every word up by nltk in its own data (`nltk.download("wordnet")`), and its number in a list of ids."""
    synsets, ids = _nltk_synsets(), _imagenet_ids()

    def names_something(text: str) -> bool:
        for word in text.split():
            found = synsets(word)
            if found and found[0].offset() in ids:
                return True
        return False

    parts = []
    for path in sorted((pool_dir / "metadata").glob("*.parquet")):
        rows = pd.read_parquet(path, columns=["uid", "text"])
        texts, uids = rows["text"].astype(object), rows["uid"].astype(object)
        keep = texts.apply(_is_english) & texts.apply(names_something)
        parts.append(np.array([divmod(int(uid, 16), 2**64) for uid in uids], dtype=UID_DTYPE)[keep.to_numpy()])
    return np.sort(np.concatenate(parts))


def floor_clip_score(pool_dir: Path) -> np.ndarray:
    """Do no more than imports, reading, parsing and the cut."""
    pool = Pool(pool_dir)
    scores = np.concatenate([pq.read_table(path, columns=[SCORE])[SCORE].to_numpy() for path in pool.metadata_paths])
    wanted = round(len(scores) * FRACTION)
    keep = scores >= np.partition(scores, len(scores) - wanted)[len(scores) - wanted]
    return sort_uids(np.concatenate([pool.read_uids(path) for path in pool.metadata_paths])[keep])


def floor_basic(pool_dir: Path) -> np.ndarray:
    """Do no more than reading, and asking the language of the captions that pass the other rules."""
    pool, model, parts = Pool(pool_dir), load_language_model(None, option=""), []
    for path in pool.metadata_paths:
        rows = pool.read_columns(path, ["text", "original_width", "original_height"])
        sides = rows[["original_width", "original_height"]].to_numpy()
        is_shaped = (sides.min(axis=1) >= 200) & (sides.max(axis=1) <= 3 * sides.min(axis=1))
        texts = rows["text"].to_numpy(dtype=object)
        shaped = [row for row in np.flatnonzero(is_shaped) if len(texts[row].split()) > 2 and len(texts[row]) > 5]
        is_english = np.array([each == "en" for each in languages_of(model, texts[shaped])])
        parts.append(pool.read_uids(path)[np.array(shaped)[is_english]])
    return sort_uids(np.concatenate(parts))


def bare_product(pool_dir: Path) -> np.ndarray:
    """Multiply the embeddings whose captions pass `image_based` by the centroids, and do nothing with the products."""
    pool, model = Pool(pool_dir), load_language_model(None, option="")
    centroids = np.load(pool_dir / "assets" / "image_centroids_l14.npy")
    for path in pool.metadata_paths:
        texts = pool.read_columns(path, ["text"])["text"].tolist()
        is_english = np.array([each == "en" for each in languages_of(model, texts)])
        shaped = np.array([len(text) > 5 and count_tokens(text) > 1 for text in texts]) & is_english
        images = pool.read_features(path, ["l14_img"])["l14_img"][shaped].astype(np.float32)
        for start in range(0, len(images), 4096):
            for first in range(0, len(centroids), 4096):
                images[start : start + 4096] @ centroids[first : first + 4096].T
    return np.empty(0, dtype=UID_DTYPE)


LEGS: dict[str, Callable[[Path], np.ndarray]] = {
    "loop clip_score": loop_clip_score,
    "loop basic": loop_basic,
    "loop text_based": loop_text_based,
    "floor clip_score": floor_clip_score,
    "floor basic": floor_basic,
    "bare product": bare_product,
}


def measure(leg: str, pool_dir: Path, work_dir: Path, *, workers: int = 0) -> Timing:
    """Time one whole process: a leg or a filter's name.

    `<name>, first`: the pool's fingerprint is to be made; `<name>, again`: the filter's values are cached.
    """
    out_dir, own_cache = work_dir / "out", work_dir / "cache"
    shutil.rmtree(out_dir, ignore_errors=True)
    name, _, when = leg.partition(", ")
    if when == "first":
        shutil.rmtree(own_cache, ignore_errors=True)
    if when != "again":
        shutil.rmtree(pool_dir / "signals", ignore_errors=True)
    if leg in LEGS:
        command = [sys.executable, "-m", "scripts.perf.filter_speed", "--leg", leg, str(pool_dir), str(out_dir)]
    else:
        given = [f"pool_dir={pool_dir}", f"exp_dir={out_dir}", f"filters={name}", f"workers={workers}"]
        given += [f"filters.clip_score.fraction={FRACTION}"] if name == "clip_score" else []
        command = [sys.executable, "-m", "benchmark", "filter", *given]
    timing = run_measured(command, {"WINNOW_CACHE_DIR": str(own_cache)})
    shutil.rmtree(out_dir, ignore_errors=True)
    return timing


def median(timings: Sequence[Timing]) -> Timing:
    """Return the median of each number."""
    return Timing(*(statistics.median(getattr(each, name) for each in timings) for name in vars(timings[0])))


def report(timings: dict[tuple[str, int], list[Timing]]) -> str:
    """Return the table of the legs on pools of the rows that they were measured on, and how the targets stand."""
    medians = {key: median(each) for key, each in timings.items()}
    legs = list(dict.fromkeys(leg for leg, _ in medians))
    lines = [
        "| what | rows | CPU s | wall s | peak MiB | CPU s per million more | of the floor | of the loop |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for leg in legs:
        sizes = sorted(rows for other, rows in medians if other == leg)
        name = leg.removeprefix("loop ").partition(", ")[0]
        for rows in sizes:
            here = medians[leg, rows]
            floor, loop = medians.get((f"floor {name}", rows)), medians.get((f"loop {name}", rows))
            slope = f"{_slope(medians, leg, sizes):.2f}" if len(sizes) > 1 and rows == sizes[-1] else ""
            lines.append(
                f"| {leg} | {rows:,} | {here.cpu_seconds:.2f} | {here.seconds:.2f} | {here.peak_mib:.0f} | {slope} | "
                f"{_ratio(here, floor)} | {_ratio(here, loop)} |"
            )
    return "\n".join([*lines, "", *_target_lines(medians)])


def _target_lines(medians: dict[tuple[str, int], Timing]) -> list[str]:
    lines = []
    sizes = sorted({rows for leg, rows in medians if leg == "clip_score"})
    if len(sizes) > 1:
        most, slope = medians["clip_score", sizes[-1]].cpu_seconds, _slope(medians, "clip_score", sizes)
        lines.append(
            f"- clip_score: {most:.2f} CPU s at {sizes[-1]:,} rows (target at 2,000,000: 1.8), {slope:.2f} for a "
            "further million (target 0.5)"
        )
    sizes = sorted({rows for leg, rows in medians if leg == "loop basic"})
    if sizes and ("basic", sizes[-1]) in medians:
        share = medians["basic", sizes[-1]].cpu_seconds / medians["loop basic", sizes[-1]].cpu_seconds
        lines.append(f"- basic: {share:.2f} of the loop at {sizes[-1]:,} rows (target 0.33)")
    looped, ours = (
        sorted({rows for leg, rows in medians if leg == name}) for name in ("loop text_based", "text_based")
    )
    if len(looped) > 1 and len(ours) > 1:
        times = _slope(medians, "loop text_based", looped) / _slope(medians, "text_based", ours)
        lines.append(f"- text_based: a row costs the loop {times:,.0f} times as much, by the slopes (target 100)")
    sizes = sorted({rows for leg, rows in medians if leg == "bare product"})
    if len(sizes) > 1 and ("image_based", sizes[0]) in medians:
        share = _slope(medians, "bare product", sizes) / _slope(medians, "image_based", sizes)
        lines.append(f"- image_based: the bare product is {share:.0%} of it, by the slopes (target 80%)")
    return lines


def report_memory(timings: dict[tuple[str, int, int], Timing]) -> str:
    """Return the table of peak memory by filter, workers and metadata shards."""
    lines = [
        "| what | workers | metadata shards | main process, MiB | largest worker, MiB |",
        "|---|---:|---:|---:|---:|",
    ]
    for (name, workers, shards), timing in timings.items():
        lines.append(f"| {name} | {workers} | {shards} | {timing.main_mib:.0f} | {timing.worker_mib:.0f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 2_000_000], help="sizes of pool")
    parser.add_argument("--loop-rows", type=int, nargs="+", default=[1000, 5000], help="for text_based's loop")
    parser.add_argument("--image-rows", type=int, nargs="+", default=[2000, 10_000], help="for image_based")
    parser.add_argument("--centroids", type=int, default=100_000, help="for image_based")
    parser.add_argument("--only", default=",".join((*FILTERS, "image_based")), help="filters, between commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="peak memory at 1, 4 and 16 metadata shards instead")
    parser.add_argument("--work-dir", type=Path, default=cache_dir() / "filter_speed", help="pools are kept there")
    parser.add_argument("--leg", nargs=3, metavar=("LEG", "POOL", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.leg:
        leg, pool_dir, out_dir = options.leg
        Path(out_dir).mkdir(parents=True)
        Subset(LEGS[leg](Path(pool_dir))).write(Path(out_dir) / "subset.npy")
        return
    only = options.only.split(",")
    unknown = set(only) - {*FILTERS, "image_based"}
    slopes = () if options.memory else (options.rows, options.loop_rows, options.image_rows)
    if unknown or any(len(set(sizes)) < 2 for sizes in slopes):
        parser.error(f"unknown filters {sorted(unknown)}" if unknown else "a slope needs two sizes of pool or more")
    print(report_memory(measure_memory(options, only)) if options.memory else report(measure_all(options, only)))


def measure_all(options: argparse.Namespace, only: Sequence[str]) -> dict[tuple[str, int], list[Timing]]:
    """Measure the legs on their pools, round after round."""
    jobs: list[tuple[str, int, Path]] = []
    for rows in sorted(set(options.rows)) if set(only) - {"image_based"} else []:
        pool_dir = options.work_dir / f"pool-{rows}"
        make_pool(pool_dir, rows)
        chosen = [each for each in FILTERS if each in only]
        legs = [f"{chosen[0]}, first"]
        for name in chosen:
            legs += [name, *([f"{name}, again"] if name in KEPT else [])]
            legs += [f"{kind} {name}" for kind in ("floor", "loop") if name in LOOPS]
        jobs += [(leg, rows, pool_dir) for leg in legs]
    for rows in sorted(set(options.loop_rows)) if "text_based" in only else []:
        make_pool(options.work_dir / f"pool-{rows}", rows)
        jobs += [("loop text_based", rows, options.work_dir / f"pool-{rows}")]
    for rows in sorted(set(options.image_rows)) if "image_based" in only else []:
        pool_dir = options.work_dir / f"images-{rows}-{options.centroids}"
        make_pool(pool_dir, rows)
        if not (pool_dir / "assets" / "image_targets_l14.npy").exists():
            add_embeddings(pool_dir, options.centroids)
        jobs += [(leg, rows, pool_dir) for leg in ("image_based", "image_based, again", "bare product")]
    timings: dict[tuple[str, int], list[Timing]] = {}
    for number in range(options.rounds):
        for leg, rows, pool_dir in jobs:
            timing = measure(leg, pool_dir, options.work_dir)
            timings.setdefault((leg, rows), []).append(timing)
            print(f"round {number + 1}, {rows:,}: {leg} {timing.cpu_seconds:.2f} CPU s", file=sys.stderr)
    return timings


def measure_memory(options: argparse.Namespace, only: Sequence[str]) -> dict[tuple[str, int, int], Timing]:
    """Measure the peaks of memory where the largest of `--rows` is 16 metadata shards."""
    shard_rows = max(options.rows) // max(MEMORY_SHARDS)
    timings = {}
    for shards in MEMORY_SHARDS:
        pool_dir = options.work_dir / f"shards-{shards}-{shard_rows}"
        make_pool(pool_dir, shards * shard_rows, shard_rows=shard_rows)
        for name in (each for each in FILTERS if each in only):
            for workers in (0, 2):
                timings[name, workers, shards] = timing = measure(name, pool_dir, options.work_dir, workers=workers)
                print(f"{name}, {workers} workers, {shards}: {timing.peak_mib:.0f} MiB", file=sys.stderr)
    return dict(sorted(timings.items()))


def _slope(medians: dict[tuple[str, int], Timing], leg: str, sizes: Sequence[int]) -> float:
    """Return the CPU seconds of a million rows, from the two largest sizes."""
    few, many = sizes[-2:]
    return max(medians[leg, many].cpu_seconds - medians[leg, few].cpu_seconds, 1e-9) / (many - few) * 1e6


def _ratio(timing: Timing, other: Timing | None) -> str:
    return "" if other is None else f"{timing.cpu_seconds / other.cpu_seconds:.2f} ×"


def _captions(rng: np.random.Generator, count: int, english: np.ndarray, others: list[np.ndarray]) -> list[str]:
    vocabularies = [english, np.array(CODES.split()), *others]
    kinds = rng.choice(len(vocabularies), count, p=[0.5, 0.08, *[0.42 / len(others)] * len(others)])
    long = 2 + np.minimum(rng.geometric(0.13, count), 60)
    lengths = np.where(rng.random(count) < 0.3, rng.integers(1, 3, count), long)  # words
    texts = np.empty(count, dtype=object)
    for kind, vocabulary in enumerate(vocabularies):
        rows = np.flatnonzero(kinds == kind)
        ends = np.cumsum(lengths[rows])
        places = len(vocabulary) * rng.random(int(ends[-1]) if len(ends) else 0) ** 6  # the first words most often
        words = vocabulary[places.astype(np.int64)].tolist()
        for row, length, end in zip(rows, lengths[rows], ends, strict=True):
            texts[row] = " ".join(words[end - length : end])
    repeated = np.flatnonzero(rng.random(count) < 0.03)
    texts[repeated] = np.array(REPEATED, dtype=object)[rng.integers(len(REPEATED), size=len(repeated))]
    return texts.tolist()


@cache
def _nouns() -> list[str]:
    """Return two thousand of WordNet's nouns."""
    nouns = load_wordnet(find_wordnet(None, option="WordNet")).first_offsets["noun"]
    return sorted(noun for noun in nouns if noun.isalpha())[::25]


@cache
def _one_by_one() -> Any:
    return load_language_model(None, option="")


def _is_english(text: str) -> bool:
    return _one_by_one().predict(text.replace("\n", " "))[0][0] == "__label__en"


def _nltk_synsets() -> Callable[[str], list[Any]]:
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    return WordNetCorpusReader(nltk.data.find("corpora/wordnet"), None).synsets


def _imagenet_ids() -> list[int]:
    spec = find_spec("timm")
    assert spec is not None and spec.submodule_search_locations
    path = Path(next(iter(spec.submodule_search_locations))) / "data" / "_info" / "imagenet21k_goog_synsets.txt"
    return [int(line[1:]) for line in path.read_text().split()]


if __name__ == "__main__":
    main()
