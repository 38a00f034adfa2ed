"""The pairs of the embedded pool, generated one by one from (generator version, pool seed, index), with their noise."""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random

from PIL import Image

from benchmark.embedded import noise
from benchmark.embedded.captions import write_caption
from benchmark.embedded.pictures import draw_picture
from benchmark.embedded.world import IMAGE_SIZE, draw_random_scene

GENERATOR_VERSION = 3  # raised when any pixel or caption changes
KIND_SHARES = {  # what a pair is, before anything else happens to it
    "clean": 0.225,
    "other_language": 0.285,
    "swapped": 0.055,
    "boilerplate": 0.05,
    "off_domain": 0.215,  # aligned, but of nothing that a task asks about
    "text_only": 0.045,  # a word, which the caption repeats: aligned, and no help
    "text_over": 0.025,  # a word over another picture, which the caption repeats: the picture contradicts it
    "partly_wrong": 0.01,
    "corrupt": 0.015,
    "empty": 0.075,  # nothing to learn from
}
OVERLAYS = (
    "small",  # the shorter side had fewer than 200 pixels
    "low_resolution",  # so few that little detail is left
    "extreme_aspect",
    "watermark",
    "blurred",
    "toxic",
    "duplicate",  # of a pair that stands earlier in the pool
    "exact_duplicate",  # with the same bytes
)
KINDS = (*(kind for kind in KIND_SHARES if kind != "clean"), *OVERLAYS)
HARMLESS_KINDS = frozenset({"small"})
FIRST_DUPLICATE = 1000  # the aligned pairs before it are what duplicates repeat, a few of them very often
ALIGNED_KINDS = ("clean", "off_domain", "text_only", "text_over", "empty")  # people copy what fits its caption
DUPLICATE_SHARE, NEAR_SHARE = 0.2, 0.6
DEAD_LINK_SHARE = 0.01
SMALL_SHARE, SMALL_SHARE_OF_CLEAN = 0.65, 0.55  # shorter side under 200 pixels; small pictures tend to be junk
EXTREME_ASPECT_SHARE = 0.07
JPEG_QUALITY = 90


@dataclass(frozen=True)
class Pair:
    """One image-text pair of the embedded pool, with what was planted in it."""

    uid: str  # 32 hex characters
    image: bytes  # a 32-px JPEG
    text: str
    url: str
    original_width: int
    original_height: int
    kinds: frozenset[str]  # of KINDS
    is_dead_link: bool  # listed in the metadata, in no shard

    @property
    def is_clean(self) -> bool:
        """Tell whether the pair is useful: aligned, English, of a task's domain, in full detail, not a repeat."""
        return self.kinds <= HARMLESS_KINDS


@dataclass(frozen=True)
class _Draft:
    """A pair before its picture is encoded."""

    picture: Image.Image
    text: str
    width: int
    height: int
    kinds: frozenset[str]


def generate_pair(pool_seed: int, index: int) -> Pair:
    """Generate the pair at `index` of a pool: the same wherever and in whatever order."""
    key = f"winnow/{GENERATOR_VERSION}/{pool_seed}/{index}"
    rng = Random(f"{key}/pair")
    is_duplicate = rng.random() < DUPLICATE_SHARE and index >= FIRST_DUPLICATE
    draft = _generate_duplicate(pool_seed, rng) if is_duplicate else _generate_original(pool_seed, index)
    file = io.BytesIO()
    draft.picture.save(file, "JPEG", quality=JPEG_QUALITY)
    uid = hashlib.sha256(key.encode()).hexdigest()[:32]
    return Pair(
        uid=uid,
        image=file.getvalue(),
        text=draft.text,
        url=f"https://{_SITES[int(len(_SITES) * rng.random() ** 2)]}/{uid[:2]}/{uid[2:12]}.jpg",
        original_width=draft.width,
        original_height=draft.height,
        kinds=draft.kinds,
        is_dead_link=rng.random() < DEAD_LINK_SHARE,
    )


@lru_cache
def _sources(pool_seed: int) -> list[int]:
    """Return the indices of the pairs that are repeated."""
    return [i for i in range(FIRST_DUPLICATE) if _choose_kind(_random_of_original(pool_seed, i)) in ALIGNED_KINDS]


@lru_cache(maxsize=FIRST_DUPLICATE)
def _generate_source(pool_seed: int, index: int) -> _Draft:
    return _generate_original(pool_seed, index)


def _generate_original(pool_seed: int, index: int) -> _Draft:
    """Generate a pair that repeats no other."""
    rng = _random_of_original(pool_seed, index)
    kind = _choose_kind(rng)
    kinds = set() if kind == "clean" else {kind}
    picture, text = _picture_and_caption(kind, rng)
    if rng.random() < 0.07:
        picture = noise.add_watermark(picture, rng)
        kinds.add("watermark")
    if rng.random() < 0.04:
        picture = noise.blur(picture, rng)
        kinds.add("blurred")
    if rng.random() < 0.015:
        text = noise.add_toxic_word(text, rng)
        kinds.add("toxic")
    aspect = math.exp(min(abs(rng.gauss(0, 0.35)), 1.0))
    is_wide = rng.random() < 0.6
    if rng.random() < EXTREME_ASPECT_SHARE:
        aspect = rng.uniform(3.2, 6)
        picture = noise.squash(picture, aspect, is_wide, rng)
        kinds.add("extreme_aspect")
    is_small = rng.random() < (SMALL_SHARE_OF_CLEAN if kind == "clean" else SMALL_SHARE)
    shorter = _log_uniform(rng, 80, 199) if is_small else _log_uniform(rng, 200, 1600)
    picture, more_kinds = _fit_detail(picture, shorter)
    longer = round(shorter * aspect)
    width, height = (longer, shorter) if is_wide else (shorter, longer)
    return _Draft(picture, text, width, height, frozenset(kinds | more_kinds))


def _random_of_original(pool_seed: int, index: int) -> Random:
    return Random(f"winnow/{GENERATOR_VERSION}/{pool_seed}/{index}/original")


def _choose_kind(rng: Random) -> str:
    return rng.choices(list(KIND_SHARES), list(KIND_SHARES.values()))[0]


def _picture_and_caption(kind: str, rng: Random) -> tuple[Image.Image, str]:
    if kind == "off_domain":
        return noise.draw_off_domain(rng)
    if kind == "text_only":
        return noise.draw_word(rng)
    if kind == "text_over":
        return noise.draw_word_over(rng)
    if kind == "empty":
        return noise.draw_nothing(rng)
    scene = draw_random_scene(rng)
    picture = draw_picture(scene, rng)
    match kind:
        case "clean":
            return picture, write_caption(scene, rng)
        case "other_language":
            shown = scene if rng.random() < 0.6 else draw_random_scene(rng)
            return picture, noise.write_foreign_caption(shown, rng)
        case "swapped":
            return picture, noise.write_swapped_caption(scene, rng)
        case "boilerplate":
            return picture, noise.write_boilerplate(rng)
        case "partly_wrong":
            return picture, noise.write_partly_wrong_caption(scene, rng)
    assert kind == "corrupt", kind
    text = write_caption(scene, rng)
    return (noise.draw_corrupt(rng), text) if rng.random() < 0.5 else (picture, noise.garble(text, rng))


def _generate_duplicate(pool_seed: int, rng: Random) -> _Draft:
    """Generate a repeat of one of the pool's first pairs, some of which are repeated much more often than others."""
    sources = _sources(pool_seed)
    source = _generate_source(pool_seed, sources[int(len(sources) * rng.random() ** 2)])
    if rng.random() >= NEAR_SHARE:
        return replace(source, kinds=source.kinds | {"duplicate", "exact_duplicate"})
    shrink = rng.uniform(0.4, 1.0)
    width, height = max(48, round(source.width * shrink)), max(48, round(source.height * shrink))
    picture, more_kinds = _fit_detail(noise.change_slightly(source.picture, rng), min(width, height))
    return _Draft(picture, source.text, width, height, source.kinds | more_kinds | {"duplicate"})


def _fit_detail(picture: Image.Image, shorter: int) -> tuple[Image.Image, set[str]]:
    """Return a picture with the detail that its shorter side (in pixels) leaves, and the kinds that this makes it."""
    if shorter >= 200:
        return picture, set()
    resolution = max(6, round(IMAGE_SIZE * shorter / 200))
    kinds = {"small"} if resolution >= 20 else {"small", "low_resolution"}
    return noise.lose_detail(picture, resolution), kinds


def _log_uniform(rng: Random, low: float, high: float) -> int:
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))


_SITES = ("pictures.example", "shop.example", "blog.example", "news.example", "stickers.example", "school.example")
