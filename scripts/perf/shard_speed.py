"""Measure the index and resharding against a plain loop over tarfile and against copying the kept bytes.

    python -m scripts.perf.shard_speed --samples 3000 12000 48000 --rounds 3

Every measurement is a whole process; the slope between two sizes of pool leaves its start out. The rounds are
interleaved, so that a busy minute of the machine meets all rows. Prints a Markdown table: medians, slopes in samples
scanned a second, and peak memory of the largest process. README.md beside this file says what each row means.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import statistics
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Process
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.pool.subset import Subset, load_subset
from benchmark.pool.tars import write_tar
from benchmark.pool.uids import parse_uids
from benchmark.runtime.files import atomic_path
from benchmark.runtime.paths import cache_dir
from scripts.perf.make_jpeg_pool import draw_picture, encode
from scripts.perf.process import Timing, run_measured

NUM_PICTURES = 64  # different ones; the pool repeats them
PICTURE_SIDES = (520, 412)  # about 70 kB
TAR_SAMPLES = 2000  # CommonPool has 10,000; these leave 12,000 samples six tars
KEPT = 0.3
COPY_BYTES = 1 << 20
TARGET_SCANNED, TARGET_OF_COPY = 40_000, 0.7
LEGS = ("index and reshard", "reshard, index there", "index", "tarfile loop", "copy")


def make_pool(pool_dir: Path, samples: int) -> None:
    """Write a pool in CommonPool's layout, and a subset of `KEPT` of it; one that is there stays."""
    if (pool_dir / "subset.npy").exists():
        return
    pictures = [encode(draw_picture(0, number, *PICTURE_SIDES)) for number in range(NUM_PICTURES)]
    hashes = [hashlib.sha256(picture).hexdigest() for picture in pictures]
    rows: list[dict[str, str]] = []

    def sample(number: int) -> Iterator[tuple[str, bytes]]:
        picture, key = number % NUM_PICTURES, f"{number:012d}"
        text = f"a house with a red roof in the evening sun, picture {number}"
        about = {
            "uid": hashlib.sha256(f"shard speed/{number}".encode()).hexdigest()[:32],
            "caption": text,
            "url": f"https://made-up.example/{number % 97}/{number}.jpg",
            "key": key,
            "status": "success",
            "error_message": None,
            "width": PICTURE_SIDES[0],
            "height": PICTURE_SIDES[1],
            "original_width": 2 * PICTURE_SIDES[0],
            "original_height": 2 * PICTURE_SIDES[1],
            "exif": "{}",
            "sha256": hashes[picture],
        }
        rows.append({"uid": str(about["uid"]), "text": text})
        yield f"{key}.jpg", pictures[picture]
        yield f"{key}.json", json.dumps(about).encode()
        yield f"{key}.txt", text.encode()

    for shard, start in enumerate(range(0, samples, TAR_SAMPLES)):
        numbers = range(start, min(start + TAR_SAMPLES, samples))
        write_tar(pool_dir / "shards" / f"{shard:08d}.tar", (part for n in numbers for part in sample(n)))
    with atomic_path(pool_dir / "metadata" / f"{0:032x}.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
    uids = parse_uids([row["uid"] for row in rows])
    Subset.of(uids[np.random.default_rng(0).random(len(uids)) < KEPT]).write(pool_dir / "subset.npy")


def tarfile_loop(pool_dir: Path, out_dir: Path) -> None:
    """Reshard as one would write it down: a loop over tarfile, a set of uids, tarfile again."""
    out_dir.mkdir(parents=True)
    kept = set(load_subset(pool_dir / "subset.npy").uids.tolist())
    for path in sorted((pool_dir / "shards").glob("*.tar")):
        with tarfile.open(path) as source, tarfile.open(out_dir / path.name, "w") as target:
            sample: list[tuple[str, bytes]] = []
            for member in source:
                file = source.extractfile(member)
                assert file is not None
                sample.append((member.name.partition(".")[2], file.read()))
                if len(sample) < 3:
                    continue
                uid = json.loads(dict(sample)["json"])["uid"]
                if (int(uid[:16], 16), int(uid[16:], 16)) in kept:
                    for extension, data in sample:
                        info = tarfile.TarInfo(f"{uid}-0.{extension}")
                        info.size = len(data)
                        target.addfile(info, io.BytesIO(data))
                sample = []


def copy_part(paths: Sequence[Path], out_dir: Path) -> None:
    """Copy the first `KEPT` of every tar's bytes."""
    buffer = memoryview(bytearray(COPY_BYTES))
    for path in paths:
        left = int(path.stat().st_size * KEPT)
        with path.open("rb", buffering=0) as source, (out_dir / path.name).open("wb", buffering=0) as target:
            while left:
                count = source.readinto(buffer[: min(left, COPY_BYTES)])
                assert count
                target.write(buffer[:count])
                left -= count


def copy_kept(pool_dir: Path, out_dir: Path) -> None:
    """Copy as many bytes as resharding keeps, in as many processes: the floor."""
    out_dir.mkdir(parents=True)
    paths = sorted((pool_dir / "shards").glob("*.tar"))
    workers = os.cpu_count() or 1
    processes = [Process(target=copy_part, args=(paths[n::workers], out_dir)) for n in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0


FUNCTIONS: dict[str, Callable[[Path, Path], None]] = {"tarfile loop": tarfile_loop, "copy": copy_kept}


def measure(leg: str, pool_dir: Path, out_dir: Path) -> Timing:
    """Time one whole process."""
    shutil.rmtree(out_dir, ignore_errors=True)
    if leg in ("index and reshard", "index"):
        shutil.rmtree(pool_dir / "index", ignore_errors=True)
    if leg == "index":
        command = [sys.executable, "-m", "benchmark", "pool", "index", str(pool_dir)]
    elif leg in FUNCTIONS:
        command = [sys.executable, "-m", "scripts.perf.shard_speed", "--leg", leg, str(pool_dir), str(out_dir)]
    else:
        given = [f"pool_dir={pool_dir}", f"subset={pool_dir / 'subset.npy'}", f"out_dir={out_dir}", "shard_size=1000"]
        command = [sys.executable, "-m", "benchmark", "reshard", *given]
    timing = run_measured(command)
    shutil.rmtree(out_dir, ignore_errors=True)
    return timing


def report(samples: Sequence[int], timings: dict[tuple[str, int], list[Timing]], rounds: int) -> str:
    """Return the table: slopes between the second to last and the last size of pool."""
    few, many = samples[-2:]
    lines = [
        f"{rounds} rounds; slopes from {few:,} to {many:,} samples, {KEPT:.0%} kept.",
        "",
        "| what | "
        + " | ".join(f"{n:,}: s" for n in samples)
        + " | scanned/s, slope | CPU µs a sample | of the copy | "
        "peak MiB at " + ", ".join(f"{n:,}" for n in samples) + " |",
        "|---|" + "---:|" * (len(samples) + 4),
    ]
    slopes = {}
    for leg in LEGS:
        medians = [statistics.median(each.seconds for each in timings[leg, n]) for n in samples]
        cpu = [statistics.median(each.cpu_seconds for each in timings[leg, n]) for n in samples]
        peaks = [statistics.median(each.peak_mib for each in timings[leg, n]) for n in samples]
        slopes[leg] = (many - few) / max(medians[-1] - medians[-2], 1e-9)
        lines.append(
            f"| {leg} | "
            + " | ".join(f"{each:.2f}" for each in medians)
            + f" | {slopes[leg]:,.0f} | {(cpu[-1] - cpu[-2]) / (many - few) * 1e6:.1f} | OF:{leg} | "
            + ", ".join(f"{each:.0f}" for each in peaks)
            + " |"
        )
    table = "\n".join(lines)
    for leg in LEGS:
        table = table.replace(f"OF:{leg} |", f"{slopes[leg] / slopes['copy']:.0%} |")
    first = slopes["index and reshard"]
    share = slopes["reshard, index there"] / slopes["copy"]
    return (
        f"{table}\n\n"
        f"Index and reshard the first time: {first:,.0f} samples scanned a second (target {TARGET_SCANNED:,}: "
        f"{'reached' if first >= TARGET_SCANNED else 'missed'}), {first / slopes['tarfile loop']:.1f} times the loop.\n"
        f"With the index: {share:.0%} of the copy (target {TARGET_OF_COPY:.0%}: "
        f"{'reached' if share >= TARGET_OF_COPY else 'missed'})."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, nargs="+", default=[3000, 12_000, 48_000], help="sizes of pool, rising")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work-dir", type=Path, default=cache_dir() / "shard_speed", help="pools are kept there")
    parser.add_argument("--leg", nargs=3, metavar=("LEG", "POOL", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.leg:
        leg, pool_dir, out_dir = options.leg
        FUNCTIONS[leg](Path(pool_dir), Path(out_dir))
        return
    samples = sorted(options.samples)
    if len(samples) < 2 or samples[0] < 1 or options.rounds < 1:
        parser.error("a slope needs two sizes of pool or more, and a round")
    for count in samples:
        make_pool(options.work_dir / str(count), count)
    timings: dict[tuple[str, int], list[Timing]] = {(leg, count): [] for leg in LEGS for count in samples}
    for number in range(options.rounds):
        for count in samples:
            for leg in LEGS:
                timings[leg, count].append(measure(leg, options.work_dir / str(count), options.work_dir / "out"))
                print(f"round {number + 1}, {count:,}: {leg} {timings[leg, count][-1].seconds:.2f} s", file=sys.stderr)
    print(report(samples, timings, options.rounds))


if __name__ == "__main__":
    main()
