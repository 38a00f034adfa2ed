"""Measure evaluation: `winnow evaluate` against clip_benchmark's command, the bare encoder, and its text classifier.

    python -m scripts.perf.eval_speed --rounds 3
    python -m scripts.perf.eval_speed --only images --images 512 --their-workers 0 2

Every measurement is a process of its own, round after round, so that a busy minute of the machine meets all of them.
Prints Markdown tables. README.md beside this file says what each row means.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from benchmark.pool.tars import write_tar
from benchmark.runtime.files import write_json
from benchmark.runtime.paths import cache_dir
from scripts.perf import make_jpeg_pool
from scripts.perf.eval_report import NUM_SHARING, NUM_TASKS, Timings, report_images, report_tasks, report_texts
from scripts.perf.process import Timing, run_measured
from scripts.perf.train_report import machine
from scripts.perf.train_speed import register_for_open_clip

PARTS = ("tasks", "images", "texts")
SMALL_MODEL, LARGE_MODEL = "nano_cnn", "ViT-B-32"
SMALL_SIDE = 32  # pixels
LARGE_SIDES = (384, 512)  # of the longer side, from and to
BATCH_SIZE = 64  # images; DataComp's and ours
CLASSES = ["circle", "square", "triangle", "star", "heart", "cross", "moon", "arrow", "house", "tree"]
TEMPLATES = ["a photo of a {c}.", "a drawing of a {c}.", "a {c}."]
PER_TASK = 5  # how many of the classes a task has: each others, in part


# What is evaluated


def make_set(
    folder: Path, images: Sequence[bytes], extension: str, classes: Sequence[str], templates: Sequence[str]
) -> None:
    """Write a set of labelled images, 1,000 a tar."""
    rng = np.random.default_rng(len(images))
    labels = rng.integers(0, len(classes), len(images))
    starts = range(0, len(images), 1000)
    for tar, start in enumerate(starts):
        members = []
        for number in range(start, min(start + 1000, len(images))):
            members.append((f"s{number:07d}.{extension}", images[number]))
            members.append((f"s{number:07d}.cls", str(labels[number]).encode()))
        write_tar(folder / "test" / f"{tar}.tar", members)
    (folder / "classnames.txt").write_text("".join(f"{name}\n" for name in classes))
    (folder / "zeroshot_classification_templates.txt").write_text("".join(f"{each}\n" for each in templates))
    (folder / "test" / "nshards.txt").write_text(f"{len(starts)}\n")  # last: the set is whole


def small_pictures(task: int, count: int) -> list[bytes]:
    """Draw smooth pictures with noise, as lossless WebP, in which DataComp keeps its sets."""
    found = []
    for number in range(count):
        rng = np.random.default_rng((task, number))
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((SMALL_SIDE, SMALL_SIDE), Image.Resampling.BICUBIC))
        noisy = smooth + rng.normal(0, 6, smooth.shape)
        file = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "WEBP", lossless=True)
        found.append(file.getvalue())
    return found


def large_pictures(count: int) -> list[bytes]:
    """Draw made-up photographs as JPEGs."""
    found = []
    for number in range(count):
        size = make_jpeg_pool.draw_size(np.random.default_rng((9, number)), *LARGE_SIDES)
        found.append(make_jpeg_pool.encode(make_jpeg_pool.draw_picture(0, number, *size)))
    return found


def set_folder(eval_dir: Path, name: str) -> Path:
    """Return the folder of the set of the task `speed/<name>`."""
    return eval_dir / f"wds_speed-{name}_test"


def make_tasks(folder: Path, images: int) -> list[str]:
    """Make the small sets where they are not there yet; return the names of their tasks."""
    for number in range(NUM_TASKS):
        path = set_folder(folder, f"{number}")
        if not (path / "test" / "nshards.txt").exists():
            first = number % (len(CLASSES) - PER_TASK + 1)
            make_set(path, small_pictures(number, images), "webp", CLASSES[first : first + PER_TASK], TEMPLATES)
    lines = ["from benchmark import register_task", "from benchmark.evaluation.tasks import ZeroShotClassification", ""]
    lines += [f'register_task(ZeroShotClassification(name="speed/{n}", title="Speed {n}"))' for n in range(NUM_TASKS)]
    (folder / "tasks.py").write_text("\n".join(lines) + "\n")
    return [f"speed/{number}" for number in range(NUM_TASKS)]


def make_weights(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a model's configuration, with its vocabulary's whole path, and random weights; return both paths."""
    from benchmark.models.build import build_model, model_config

    config = folder / f"{register_for_open_clip(name, folder)}.json"
    if not config.exists():  # a model of open_clip's own
        config.write_text(json.dumps(model_config(name)))
    weights = folder / f"{name}.pt"
    if not weights.exists():
        torch.save(build_model(name).state_dict(), weights)
    return config, weights


def imagenet_prompts(num_classes: int, num_templates: int) -> tuple[list[str], list[str]]:
    """Return the first of ImageNet's class names and templates, as clip_benchmark brings them."""
    import clip_benchmark.datasets

    folder = Path(clip_benchmark.datasets.__file__).parent
    read = [
        json.loads((folder / f"en_{kind}.json").read_text())["imagenet1k"]
        for kind in ("classnames", "zeroshot_classification_templates")
    ]
    return read[0][:num_classes], read[1][:num_templates]


# Legs, each the work of one process


def leg_command(arguments: Sequence[str]) -> None:
    """Run clip_benchmark's own command; the first argument is a configuration to make known to open_clip."""
    import open_clip

    import benchmark.models.build  # noqa: F401  # the towers of the embedded scales

    clip_benchmark_works()
    from clip_benchmark import cli

    open_clip.add_model_config(Path(arguments[0]))
    sys.argv = ["clip_benchmark", *arguments[1:]]
    cli.main()


def clip_benchmark_works() -> None:
    """Let clip_benchmark 1.6.2 call float() of an array of one number, which NumPy refuses since 2.4."""
    from clip_benchmark.metrics import zeroshot_classification

    zeroshot_classification.float = lambda value: np.float64(value).item()


def leg_images(leg: str, out: Path, model: tuple[Path, Path], folder: Path, workers: int, threads: int) -> None:
    """Encode the set of large pictures; write the seconds of all, and of the images alone."""
    from benchmark.evaluation.checkpoints import open_model

    if threads:
        torch.set_num_threads(threads)
    opened: Any = open_model(str(model[0]), str(model[1]))
    opened.model.eval()
    images = len(json.loads((folder / "large.json").read_text()))
    seconds: dict[str, float] = {}
    if leg == "bare encoder":
        side = opened.preprocess.image_size
        batch = torch.randn(BATCH_SIZE, 3, side, side)
        with torch.inference_mode():
            opened.model.encode_image(batch, normalize=True)
            start = time.perf_counter()
            for _ in range(-(-images // BATCH_SIZE)):
                opened.model.encode_image(batch, normalize=True)
            seconds["images"] = time.perf_counter() - start
    elif leg == "ours":
        seconds = time_ours(opened, folder, ["large"], out.with_suffix(""), workers)
    else:
        seconds = time_theirs(opened, set_folder(folder, "large"), workers)
    write_json(out, seconds)


def leg_texts(leg: str, out: Path, model: tuple[Path, Path], folder: Path, threads: int) -> None:
    """Make the classifier of ImageNet's classes; write the seconds and keep the classifier beside."""
    from benchmark.evaluation.batch_encoder import batch_encoder
    from benchmark.evaluation.checkpoints import open_model
    from benchmark.evaluation.encoding import ModelEncoder

    if threads:
        torch.set_num_threads(threads)
    opened: Any = open_model(str(model[0]), str(model[1]))
    opened.model.eval()
    classes, templates = json.loads((folder / "prompts.json").read_text())
    if leg == "clip_benchmark":
        from clip_benchmark.metrics.zeroshot_classification import zero_shot_classifier

        start = time.perf_counter()
        classifier = zero_shot_classifier(opened.model, opened.tokenizer, classes, templates, "cpu", amp=False).T
        seconds = time.perf_counter() - start
    else:
        with torch.inference_mode(), batch_encoder(opened.model, "cpu") as batches:
            if leg == "ours, not cut":
                batches.tower = None
            encoder = ModelEncoder(batches, opened.tokenizer, opened.preprocess)
            start = time.perf_counter()
            for _ in range(NUM_SHARING if leg == "ours, three tasks" else 1):
                classifier = encoder.encode_classes(classes, templates, "speed")
            seconds = time.perf_counter() - start
    np.save(out.with_suffix(".npy"), classifier.numpy())
    write_json(out, {"texts": seconds})


def time_ours(opened: Any, folder: Path, names: Sequence[str], out_dir: Path, workers: int) -> dict[str, float]:
    """Evaluate tasks; return the seconds of all, and of the images alone."""
    from benchmark.evaluation.encoding import ModelEncoder
    from benchmark.evaluation.evaluate import evaluate
    from benchmark.evaluation.tasks import ZeroShotClassification

    seconds = {"images": 0.0}
    encode = ModelEncoder.encode_images

    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        encoded = encode(*arguments)
        seconds["images"] += time.perf_counter() - start
        return encoded

    tasks = [ZeroShotClassification(name=f"speed/{name}", title=name) for name in names]
    start = time.perf_counter()
    with patch.object(ModelEncoder, "encode_images", timed):
        evaluate(
            opened.model,
            opened.tokenizer,
            tasks,
            folder,
            out_dir,
            inputs={"checkpoint": opened.checkpoint},
            preprocess=opened.preprocess,
            workers=workers,
        )
    return {**seconds, "all": time.perf_counter() - start}


def time_theirs(opened: Any, folder: Path, workers: int) -> dict[str, float]:
    """Evaluate by clip_benchmark's functions, as its command does; return the same."""
    from clip_benchmark.datasets.builder import build_wds_dataset
    from clip_benchmark.metrics import zeroshot_classification as theirs
    from open_clip import image_transform
    from torch.utils.data import DataLoader

    start = time.perf_counter()
    transform = image_transform(opened.preprocess.image_size, is_train=False)
    dataset = build_wds_dataset("large", transform, data_dir=str(folder))
    loader: Any = DataLoader(dataset.batched(BATCH_SIZE), batch_size=None, num_workers=workers)
    classes, templates = dataset.classes, dataset.templates
    classifier = theirs.zero_shot_classifier(opened.model, opened.tokenizer, classes, templates, "cpu", amp=False)
    middle = time.perf_counter()
    theirs.run_classification(opened.model, classifier, loader, "cpu", amp=False)
    end = time.perf_counter()
    return {"images": end - middle, "all": end - start}


# Measurements


def run_leg(arguments: Sequence[object]) -> Timing:
    """Run a leg of this file in a process of its own, with an empty cache."""
    command = [sys.executable, "-m", "scripts.perf.eval_speed", "--leg", *map(str, arguments)]
    return run_measured(command, with_empty_cache(Path(str(arguments[2]))))


def with_empty_cache(out: Path) -> dict[str, str]:
    """Return the environment of a process that finds this one's packages, and no hash of a file from an earlier one."""
    shutil.rmtree(out.parent / "cache", ignore_errors=True)
    return {"WINNOW_CACHE_DIR": str(out.parent / "cache"), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def measure_tasks(options: argparse.Namespace, work_dir: Path) -> tuple[Timings, list[str]]:
    """Run both commands over the same sets; return whole seconds by row, and what else is to be said."""
    folder = work_dir / f"small-{options.images_per_task}"
    folder.mkdir(parents=True, exist_ok=True)
    names = make_tasks(folder, options.images_per_task)
    config, weights = make_weights(folder, SMALL_MODEL)
    ours = [sys.executable, "-m", "benchmark", "evaluate", f"model={config}", f"checkpoint={weights}", "device=cpu"]
    ours += [f"eval_dir={folder}", f"tasks=[{','.join(names)}]", f"plugins=[{folder / 'tasks.py'}]"]

    def theirs(datasets: Sequence[str], out: Path, workers: int) -> list[str]:
        command = [sys.executable, "-m", "scripts.perf.eval_speed", "--leg", "command", str(config), "eval"]
        command += ["--dataset", *(f"wds/{name}" for name in datasets), "--model", config.stem, "--no_amp"]
        command += ["--dataset_root", str(folder / "wds_{dataset_cleaned}_test"), "--pretrained", str(weights)]
        command += ["--task", "zeroshot_classification", "--quiet", "--output", f"{out}/{{dataset}}.json"]
        return [*command, "--batch_size", str(BATCH_SIZE), "--num_workers", str(workers)]

    timings: Timings = {}
    for number in range(options.rounds):
        out = fresh(work_dir / "out")
        timing = run_measured([*ours, f"out_dir={out / 'ours'}"], with_empty_cache(out / "ours"))
        note(timings, number, "`winnow evaluate`", timing.seconds)
        environment = with_empty_cache(out / "theirs")
        (out / "theirs").mkdir(exist_ok=True)
        ways = [(workers, threads) for workers in options.their_workers for threads in options.their_threads]
        for workers, threads in ways:
            environment |= {"OMP_NUM_THREADS": str(threads or os.cpu_count())}
            row = f"clip_benchmark, one call, {workers} workers, {threads or 'all'} threads"
            note(timings, number, row, run_measured(theirs(names, out / "theirs", workers), environment).seconds)
        workers, threads = ways[0]
        environment |= {"OMP_NUM_THREADS": str(threads or os.cpu_count())}
        calls = [run_measured(theirs([name], out / "theirs", workers), environment).seconds for name in names]
        row = f"clip_benchmark, a call for each, {workers} workers, {threads or 'all'} threads"
        note(timings, number, row, sum(calls))
    return timings, [compare_scores(names, out)]


def compare_scores(names: Sequence[str], out: Path) -> str:
    """Say how far apart both commands' scores are, of all tasks and metrics."""
    lines = [json.loads(line) for line in (out / "ours" / "eval_results.jsonl").read_text().splitlines()]
    ours = {line["key"]: line["metrics"] for line in lines}
    apart = 0.0
    for name in names:
        metrics = json.loads((out / "theirs" / f"{name.replace('/', '_')}.json").read_text())["metrics"]
        apart = max([apart, *(abs(metrics[each] - ours[name][each]) for each in metrics)])
    return f"- scores of {len(names)} tasks, acc1, acc5 and mean_per_class_recall: at most {apart:.1e} apart"


def measure_images(options: argparse.Namespace, work_dir: Path) -> tuple[Timings, list[str]]:
    """Measure the encoding of large pictures; return images a second by row."""
    folder = work_dir / f"large-{options.images}"
    folder.mkdir(parents=True, exist_ok=True)
    model = make_weights(folder, LARGE_MODEL)
    if not (folder / "large.json").exists():
        pictures = large_pictures(options.images)
        make_set(set_folder(folder, "large"), pictures, "jpg", CLASSES, TEMPLATES[:1])
        write_json(folder / "large.json", [len(picture) for picture in pictures])
    legs = [("bare encoder", 0), ("ours", 0), *(("clip_benchmark", workers) for workers in options.their_workers)]
    timings: Timings = {}
    for number in range(options.rounds):
        for leg, workers in legs:
            out = fresh(work_dir / "out") / "leg.json"
            run_leg(["images", leg, out, *model, folder, workers, options.threads])
            seconds = json.loads(out.read_text())
            name = f"{leg}, {workers} workers" if leg == "clip_benchmark" else leg
            images = -(-options.images // BATCH_SIZE) * BATCH_SIZE if leg == "bare encoder" else options.images
            note(timings, number, name, images / seconds["images"])
            if "all" in seconds:
                note(timings, number, f"{name}, prompts and files too", images / seconds["all"])
    sizes = json.loads((folder / "large.json").read_text())
    return timings, [f"- {len(sizes)} JPEGs of {sum(sizes) / len(sizes) / 1000:.0f} kB, 10 prompts"]


def measure_texts(options: argparse.Namespace, work_dir: Path) -> tuple[Timings, list[str]]:
    """Measure the making of a text classifier; return seconds by row."""
    folder = work_dir / "texts"
    folder.mkdir(parents=True, exist_ok=True)
    model = make_weights(folder, LARGE_MODEL)
    write_json(folder / "prompts.json", imagenet_prompts(options.classes, options.templates))
    timings: Timings = {}
    for number in range(options.rounds):
        classifiers = {}
        for leg in ("ours", "ours, three tasks", "ours, not cut", "clip_benchmark"):
            out = fresh(work_dir / "out") / "leg.json"
            run_leg(["texts", leg, out, *model, folder, options.threads])
            note(timings, number, leg, json.loads(out.read_text())["texts"])
            classifiers[leg] = np.load(out.with_suffix(".npy"))
    theirs = classifiers["clip_benchmark"]
    apart = np.abs(classifiers["ours"] - classifiers["ours, not cut"]).max()
    return timings, [
        f"- embeddings: {np.abs(classifiers['ours'] - theirs).max():.1e} from clip_benchmark's at most; cut and not "
        f"cut {f'{apart:.1e} apart' if apart else 'the same bits'}"
    ]


def fresh(folder: Path) -> Path:
    """Return the folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def note(timings: Timings, number: int, row: str, value: float) -> None:
    timings.setdefault(row, []).append(value)
    print(f"round {number + 1}: {row}: {value:,.2f}", file=sys.stderr, flush=True)


# Reports


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS), help="parts, between commas (default: all)")
    parser.add_argument("--images-per-task", type=int, default=2000, help="small pictures (default: 2,000)")
    parser.add_argument("--images", type=int, default=320, help="large pictures (default: 320)")
    parser.add_argument("--classes", type=int, default=100, help="of ImageNet's (default: 100)")
    parser.add_argument("--templates", type=int, default=20, help="of ImageNet's (default: 20)")
    parser.add_argument(
        "--their-workers", type=int, nargs="+", default=[0, 4], help="clip_benchmark's, to try (default: 0 4)"
    )
    parser.add_argument(
        "--their-threads",
        type=int,
        nargs="+",
        default=[0, 1],
        help="of clip_benchmark's command, 0 for torch's default (default: 0 1)",
    )
    parser.add_argument("--threads", type=int, default=0, help="of large models (default: 0, torch's default)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved repetitions (default: 3)")
    parser.add_argument("--work-dir", type=Path, default=cache_dir() / "eval_speed", help="the sets are kept there")
    parser.add_argument("--leg", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.only.split(",")) - set(PARTS)):
        parser.error(f"unknown parts {unknown}; there are {', '.join(PARTS)}")
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    return options


def run_part(part: str, given: Sequence[str]) -> None:
    """Do a leg's work in this process, as `run_leg` spells it."""
    if part == "command":
        leg_command(given)
        return
    model = Path(given[2]), Path(given[3])
    if part == "images":
        leg_images(given[0], Path(given[1]), model, Path(given[4]), workers=int(given[5]), threads=int(given[6]))
    else:
        leg_texts(given[0], Path(given[1]), model, Path(given[4]), threads=int(given[5]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure as the command line says, and print the tables."""
    options = parse_options(arguments)
    if options.leg:
        run_part(options.leg[0], options.leg[1:])
        return
    print(machine("cpu"))
    parts: dict[str, tuple[str, Callable[..., tuple[Timings, list[str]]], Callable[[Timings], list[str]]]] = {
        "tasks": (
            f"{NUM_TASKS} tasks of {options.images_per_task:,} images of {SMALL_SIDE} px, {SMALL_MODEL}",
            measure_tasks,
            lambda timings: report_tasks(timings, options.images_per_task),
        ),
        "images": (
            f"{options.images} images, {LARGE_MODEL}, {options.threads or 'all'} threads",
            measure_images,
            report_images,
        ),
        "texts": (
            f"{options.classes} classes in {options.templates} templates, {LARGE_MODEL}",
            measure_texts,
            lambda timings: report_texts(timings, options.classes * options.templates),
        ),
    }
    for name in options.only.split(","):
        title, measure, report = parts[name]
        timings, notes = measure(options, options.work_dir.resolve())
        print(f"\n{title}, {options.rounds} interleaved rounds; load average {os.getloadavg()[0]:.1f} at the end:\n")
        print("\n".join([*report(timings), *notes]), flush=True)


if __name__ == "__main__":
    main()
