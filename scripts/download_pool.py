"""Download a CommonPool: metadata from the Hugging Face hub, then the images from the web by img2dataset.

    python scripts/download_pool.py --scale small --out pools/small --dry-run
    python scripts/download_pool.py --make-venv
    python scripts/download_pool.py --scale small --out pools/small
    python scripts/download_pool.py --out pools/small --retry

Killed and started again it resumes: files and shards that are complete stay. A shard lies in `shards/` only when it is
whole, its `_stats.json` last. Shard numbers follow from the metadata: every metadata file in the order of names, cut
into shards of 10,000 rows, as img2dataset counts them for DataComp. `--retry` tries again what may still succeed, in
shards after the last. Images are kept as DataComp keeps them (longer side at most 512, JPEG, faces blurred, the opt-out
headers noai, noimageai, noindex and noimageindex respected), and only where their sha256 is the metadata's.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout, the package not installed

from benchmark.runtime.console import say
from benchmark.runtime.errors import NotFoundError, UserError
from benchmark.runtime.failures import end_of_script
from benchmark.runtime.files import read_text, write_json
from benchmark.runtime.locks import locked
from benchmark.runtime.names import nearest_name
from benchmark.runtime.paths import cache_dir
from scripts.download.images import DenyList, Effort, download_images, plan_images
from scripts.download.metadata import adopt_metadata, fetch_metadata
from scripts.download.record import (
    DOWNLOAD_RECORD_NAME,
    GB,
    KEY_DIGITS,
    Download,
    ImageSettings,
    check_origin,
    need_space,
)
from scripts.download.report import print_report, report

REPORT_NAME = "download_report.json"
IMG2DATASET = "img2dataset>=1.47,<2"
SHARD_SIZE = 10_000
# img2dataset's own default, which DataComp left as it was.
OPT_OUT_DIRECTIVES = ["noai", "noimageai", "noindex", "noimageindex"]
USER_AGENT_TOKEN = "img2dataset"  # the name by which sites address such downloads in X-Robots-Tag


@dataclass(frozen=True)
class ScaleFigures:
    """What DataComp publishes of a scale's size; bytes are decimal."""

    rows: int
    files: int  # of metadata, and as many .npz
    metadata_bytes: int
    feature_bytes: int
    tar_bytes: int  # were every image still there


# Files of the two large scales: at half a million rows each, as the smaller ones have.
SCALES = {
    "small": ScaleFigures(12_800_000, 26, 3 * GB, 75 * GB, 450 * GB),
    "medium": ScaleFigures(128_000_000, 253, 30 * GB, 750 * GB, 4_500 * GB),
    "large": ScaleFigures(1_280_000_000, 2_530, 300 * GB, 7_500 * GB, 45_000 * GB),
    "xlarge": ScaleFigures(12_800_000_000, 25_300, 3_000 * GB, 75_000 * GB, 450_000 * GB),
}
BYTES_PER_PAIR = SCALES["small"].tar_bytes / SCALES["small"].rows


def run(options: argparse.Namespace) -> None:
    """Do what the options ask."""
    if options.dry_run:
        rate = options.pairs_per_second
        print_plan(options.scale, features=options.features, images=not options.metadata_only, rate=rate)
        return
    command = options.img2dataset or cache_dir() / "img2dataset-venv" / "bin" / "img2dataset"
    if options.make_venv:
        say(f"img2dataset: {make_venv(command.parent.parent)}")
        if options.out is None:
            return
    deny = DenyList(read_text(options.deny).splitlines()) if options.deny else DenyList()
    repo = options.repo or (repo_of(options.scale) if options.scale else None)
    if options.report and not (options.out / DOWNLOAD_RECORD_NAME).exists():
        raise NotFoundError(
            f"{options.out} has no {DOWNLOAD_RECORD_NAME}: nothing was downloaded there", code="not-found"
        )
    check_origin(Download(options.out), repo, options.revision, options.skip_metadata)  # before a folder is made
    python = None if options.report or options.metadata_only else python_of(command)
    with locked(options.out):
        download = Download(options.out)
        repo, revision = check_origin(download, repo, options.revision, options.skip_metadata)
        shutil.rmtree(download.partial_dir, ignore_errors=True)
        if not options.report:
            download.partial_dir.mkdir()
            if options.skip_metadata:
                adopt_metadata(download, repo, revision)
            else:
                fetch_metadata(download, repo, revision, features=options.features)
        if python is not None:
            settings = ImageSettings(
                shard_size=options.shard_size,
                keep_faces=options.keep_faces,
                keep_changed=options.keep_changed,
                user_agent_token=options.user_agent_token,
                disallowed_header_directives=OPT_OUT_DIRECTIVES,
            )
            plan_images(download, settings)
            if not options.ignore_space and not options.retry:
                missing = sum(not download.is_done(number) for number in download.rounds[0].numbers)
                needed = min(missing * settings.shard_size, download.rounds[0].rows) * BYTES_PER_PAIR
                need_space(download.out, needed, "the images", ", or give --ignore-space: dead links need none")
            effort = Effort(options.processes, options.threads, options.timeout, options.deadline, options.retries)
            download_images(download, python, effort, deny, retry=options.retry)
        values = report(download)
        write_json(download.out / REPORT_NAME, values)
        print_report(values)
        shutil.rmtree(download.partial_dir, ignore_errors=True)


def python_of(img2dataset: Path) -> Path:
    """Return the Python beside img2dataset's command; raises FileNotFoundError that says how to get one."""
    for folder in (img2dataset.expanduser().absolute().parent, img2dataset.expanduser().resolve().parent):
        if img2dataset.expanduser().exists() and (folder / "python").exists():
            return folder / "python"
    raise NotFoundError(
        f"there is no img2dataset at {img2dataset} in an environment of its own; make one with: "
        "python scripts/download_pool.py --make-venv",
        code="package-missing",
    )


def make_venv(venv_dir: Path) -> Path:
    """Make a virtual environment with img2dataset; return its command's path."""
    command = venv_dir / "bin" / "img2dataset"
    if not command.exists():
        say(f"installing img2dataset into {venv_dir}")
        # img2dataset uses a module that Python 3.13 took out of its library.
        packages = [IMG2DATASET, "standard-imghdr; python_version >= '3.13'"]
        for step in (
            [sys.executable, "-m", "venv", str(venv_dir)],
            [str(venv_dir / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages],
        ):
            if code := subprocess.run(step, stdout=sys.stderr).returncode:
                raise UserError(f"{' '.join(step)} failed with exit status {code}; see above", code="downloader-failed")
    return command


def print_plan(scale: str, *, features: bool, images: bool, rate: float) -> None:
    """Print what a download of a scale brings, from DataComp's published figures."""
    figures = SCALES[scale]
    total = figures.metadata_bytes + features * figures.feature_bytes + images * figures.tar_bytes
    say(f"{scale}: {figures.rows:,} pairs, from https://huggingface.co/datasets/{repo_of(scale)}")
    say(f"  metadata  {figures.metadata_bytes / GB:>11,.0f} GB in about {figures.files:,} files")
    if features:
        say(f"  features  {figures.feature_bytes / GB:>11,.0f} GB in about {figures.files:,} files")
    if images:
        say(f"  images    {figures.tar_bytes / GB:>11,.0f} GB in {figures.rows // SHARD_SIZE:,} shards, were all there")
    say(f"  disk      {total / GB:>11,.0f} GB at most")
    if images:
        say(f"  time      {figures.rows / rate / 3600:>11,.1f} hours at {rate:,.0f} pairs a second")


def repo_of(scale: str) -> str:
    return f"mlfoundations/datacomp_{scale}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises ValueError where options do not go together."""
    parser = argparse.ArgumentParser(
        description="Download a CommonPool: its metadata from the Hugging Face hub, its images from the web.",
        epilog="Started again it goes on where it was. Others than the scales: --repo mlfoundations/datacomp_1b.",
    )
    parser.add_argument("--scale", help=f"{', '.join(SCALES)}: the repository mlfoundations/datacomp_<scale>")
    parser.add_argument("--repo", help="another dataset of the hub with such metadata")
    parser.add_argument("--revision", help="branch, tag or commit (default: main; a begun pool keeps its commit)")
    parser.add_argument("--out", type=Path, help="the pool's folder: metadata/ and shards/ come below it")
    what = parser.add_argument_group("what")
    what.add_argument("--features", action="store_true", help="the .npz with CLIP features too (25 times as large)")
    what.add_argument("--metadata-only", action="store_true", help="no images")
    what.add_argument("--skip-metadata", action="store_true", help="use the metadata that lies there; ask no hub")
    what.add_argument("--retry", action="store_true", help="try again what failed and may succeed, in further shards")
    what.add_argument("--report", action="store_true", help=f"only count what is there ({REPORT_NAME})")
    what.add_argument("--dry-run", action="store_true", help="only say how large a scale is and how long it takes")
    what.add_argument(
        "--pairs-per-second", type=float, default=500.0, metavar="N", help="for --dry-run (default: %(default)g)"
    )
    images = parser.add_argument_group("images (fixed with a pool's first shard)")
    images.add_argument("--keep-faces", action="store_true", help="do not blur faces")
    images.add_argument(
        "--keep-changed", action="store_true", help="do not compare sha256 with the metadata's (DataComp did not)"
    )
    images.add_argument("--shard-size", type=int, default=SHARD_SIZE, help="rows a shard, at most 10,000 (the default)")
    images.add_argument(
        "--user-agent-token", default=USER_AGENT_TOKEN, help="the name that sites may address (default: %(default)s)"
    )
    effort = parser.add_argument_group("how")
    effort.add_argument("--deny", type=Path, metavar="FILE", help="hosts or url prefixes not to ask, one a line")
    effort.add_argument(
        "--processes", type=int, default=os.cpu_count(), help="shards at once (default: one a core, %(default)s)"
    )
    effort.add_argument("--threads", type=int, default=128, help="urls at once, per process (default: %(default)s)")
    effort.add_argument("--timeout", type=float, default=10.0, help="seconds of silence of a server (default: 10)")
    effort.add_argument(
        "--deadline", type=float, default=30.0, help="seconds for a url in all, however it drips (default: 30)"
    )
    effort.add_argument("--retries", type=int, default=0, help="further tries at once (default: 0, as DataComp)")
    effort.add_argument("--ignore-space", action="store_true", help="begin though the disk may become full")
    effort.add_argument("--img2dataset", type=Path, metavar="PATH", help="its command (default: that of --make-venv)")
    effort.add_argument("--make-venv", action="store_true", help="install img2dataset in an environment of its own")
    options = parser.parse_args(arguments)
    if options.scale is not None and options.scale not in SCALES:
        raise UserError(
            f"unknown scale {options.scale!r}.{nearest_name(options.scale, SCALES)} Scales: {', '.join(SCALES)}; "
            "--repo takes any other dataset",
            code="unknown-scale",
        )
    if options.scale and options.repo:
        raise UserError("--scale and --repo both name a repository; give one", code="option-conflict")
    for first, second in (
        ("metadata_only", "skip_metadata"),
        ("metadata_only", "retry"),
        ("report", "retry"),
        ("features", "skip_metadata"),
    ):
        if getattr(options, first) and getattr(options, second):
            raise UserError(
                f"--{first.replace('_', '-')} and --{second.replace('_', '-')} do not go together",
                code="option-conflict",
            )
    if not 1 <= options.shard_size <= 10**KEY_DIGITS:
        raise UserError(
            f"--shard-size is {options.shard_size}; it goes from 1 to {10**KEY_DIGITS:,}", code="option-value"
        )
    for name in ("processes", "threads", "timeout", "deadline", "pairs_per_second"):
        if not getattr(options, name) > 0:
            raise UserError(
                f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be above 0", code="option-value"
            )
    if options.retries < 0:
        raise UserError(f"--retries is {options.retries}; it must be 0 or more", code="option-value")
    if options.dry_run and not options.scale:
        raise UserError("--dry-run knows the figures of the scales; give --scale", code="option-missing")
    if options.out is None and not options.dry_run and not options.make_venv:
        raise UserError("no folder for the pool; give --out", code="option-missing")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status, after one sentence where it is not 0."""

    def work() -> int:
        run(parse(arguments))
        return 0

    return end_of_script(__file__, work, arguments)


if __name__ == "__main__":
    sys.exit(main())
