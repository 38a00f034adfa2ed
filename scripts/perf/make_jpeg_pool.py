"""Make a pool of made-up photographs in CommonPool's layout: for measuring speed, never for learning from.

    python -m scripts.perf.make_jpeg_pool --samples 100000 --size 224 512 --out pools/jpeg

The pictures are noise whose amplitude falls with the frequency a little faster than that of photographs, so that the
JPEGs have about the size of CommonPool's. A pool is a function of (seed, samples, sizes, shard size).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmark.pool.tars import write_tar
from benchmark.runtime.errors import UserError
from benchmark.runtime.executor import map_items
from benchmark.runtime.files import atomic_path

FIELD = 2048  # pixels; pictures are windows of a field of this size
SLOPE = 1.3  # amplitude falls as frequency ** -SLOPE
CONTRAST, COLOURFULNESS = 55.0, 20.0  # standard deviations of brightness and of colour, of 255
QUALITY = 90
SHORTER_SIDE = 0.6  # the least share of the longer side
WORDS = (
    "a the of in with and on photo picture red blue green old new house street dog cat garden table wooden summer sale "
    "free shipping set vintage black white kitchen car mountain lake view portrait woman man children playing stock "
    "illustration vector design home decor art print poster 2014 best how to make easy recipe chicken cake beach sunset"
)


@lru_cache(maxsize=1)
def noise_field(seed: int) -> np.ndarray:
    """Return noise with the spectrum of photographs, (FIELD, FIELD, 3) float32: mean 0 and deviation 1 per channel."""
    rng = np.random.default_rng([seed, 0])
    frequency = np.hypot(np.fft.fftfreq(FIELD)[:, None], np.fft.rfftfreq(FIELD)[None])
    frequency[0, 0] = 1.0
    amplitude = frequency**-SLOPE
    amplitude[0, 0] = 0.0
    channels = [
        np.fft.irfft2(np.fft.rfft2(rng.standard_normal((FIELD, FIELD), np.float32)) * amplitude, (FIELD, FIELD))
        for _ in range(3)
    ]
    field = np.stack(channels, axis=-1)
    return (field / field.std(axis=(0, 1))).astype(np.float32)


def draw_picture(seed: int, number: int, width: int, height: int) -> Image.Image:
    """Draw picture `number` of a seed: brightness and two weaker colours, a window of the seed's field."""
    rng = np.random.default_rng([seed, 1, number])
    left, top = rng.integers(0, FIELD - width + 1), rng.integers(0, FIELD - height + 1)
    window = noise_field(seed)[top : top + height, left : left + width]
    window = window[:: rng.choice((-1, 1)), :: rng.choice((-1, 1)), rng.permutation(3)]
    brightness, red, blue = np.moveaxis(window * (CONTRAST, COLOURFULNESS, COLOURFULNESS) + (128, 0, 0), -1, 0)
    pixels = np.stack([brightness + red, brightness - (red + blue) / 2, brightness + blue], axis=-1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encode(picture: Image.Image, subsampling: str = "4:2:0") -> bytes:
    """Encode as JPEG, colours subsampled as most of the web's."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY, subsampling=subsampling)
    return file.getvalue()


def draw_size(rng: np.random.Generator, smallest: int, largest: int) -> tuple[int, int]:
    """Draw width and height: the longer side uniform between the two sizes, the shorter a part of it."""
    longer = int(rng.integers(smallest, largest + 1))
    shorter = round(longer * rng.uniform(SHORTER_SIDE, 1))
    return (longer, shorter) if rng.random() < 0.6 else (shorter, longer)


def write_shard(numbers: range, *, pool_dir: Path, seed: int, sizes: tuple[int, int], shard_size: int) -> int:
    """Write the tar of these samples and its metadata shard; return the bytes of its pictures."""
    shard = numbers.start // shard_size
    members: list[tuple[str, bytes]] = []
    rows: list[dict[str, object]] = []
    for number in numbers:
        rng = np.random.default_rng([seed, 2, number])
        width, height = draw_size(rng, *sizes)
        image = encode(draw_picture(seed, number, width, height))
        row: dict[str, object] = {
            "uid": hashlib.sha256(f"jpeg pool/{seed}/{number}".encode()).hexdigest()[:32],
            "url": f"https://made-up.example/{number}.jpg",
            "text": " ".join(rng.choice(WORDS.split(), rng.integers(4, 16))),
            "original_width": width,
            "original_height": height,
            "sha256": hashlib.sha256(image).hexdigest(),
        }
        rows.append(row)
        key = f"{number:09d}"
        members += [
            (f"{key}.jpg", image),
            (f"{key}.json", json.dumps(row).encode()),
            (f"{key}.txt", str(row["text"]).encode()),
        ]
    write_tar(pool_dir / "shards" / f"{shard:08d}.tar", members)
    name = hashlib.sha256(f"jpeg pool/{seed}/shard/{shard}".encode()).hexdigest()[:32]
    with atomic_path(pool_dir / "metadata" / f"{name}.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
    return sum(len(data) for name, data in members if name.endswith(".jpg"))


def make_pool(
    pool_dir: Path, samples: int, *, sizes: tuple[int, int], shard_size: int = 1000, seed: int = 0, workers: int = 0
) -> int:
    """Write the pool and return the bytes of its pictures; raises ValueError where the folder or a size is no good."""
    if samples < 1 or shard_size < 1:
        raise UserError(f"{samples} samples in shards of {shard_size}; both must be 1 or more", code="perf")
    if not 8 <= sizes[0] <= sizes[1] <= FIELD:
        raise UserError(
            f"sizes are {sizes[0]} and {sizes[1]}; the smaller comes first, from 8 to {FIELD} pixels", code="perf"
        )
    if pool_dir.exists() and any(pool_dir.iterdir()):
        raise UserError(f"{pool_dir} is not empty; choose another folder or delete it", code="perf")
    for folder in ("shards", "metadata"):
        (pool_dir / folder).mkdir(parents=True)
    starts = range(0, samples, shard_size)
    shards = [range(start, min(start + shard_size, samples)) for start in starts]
    write = partial(write_shard, pool_dir=pool_dir, seed=seed, sizes=sizes, shard_size=shard_size)
    return sum(map_items(write, shards, workers=workers, name="draw"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Make a pool as the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument(
        "--size", type=int, nargs=2, default=(224, 512), metavar=("MIN", "MAX"), help="of the longer side, in pixels"
    )
    parser.add_argument("--shard-size", type=int, default=1000, help="samples per tar (default: 1,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes, 0 for this one (default: a core each)"
    )
    parser.add_argument("--out", type=Path, required=True, help="the pool's folder, not there or empty")
    options = parser.parse_args(arguments)
    sizes = (options.size[0], options.size[1])
    total = make_pool(
        options.out,
        options.samples,
        sizes=sizes,
        shard_size=options.shard_size,
        seed=options.seed,
        workers=options.workers,
    )
    print(f"{options.out}: {options.samples:,} pairs, {total / options.samples / 1000:.1f} kB a picture")


if __name__ == "__main__":
    main()
