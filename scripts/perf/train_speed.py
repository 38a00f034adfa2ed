"""Measure training: our loop, open_clip's own trainer on the same tars and model, and the bare model, in one run.

    python -m scripts.perf.train_speed --scale nano --pool-dir pools/nano
    python -m scripts.perf.train_speed --scale small --pool-dir pools/jpeg --device cuda --workers 16 \
        --open-clip-workers 16 --samples 200000

Every measurement is a fresh process; the rounds are interleaved, so that a busy minute of the machine meets all of
them. Prints medians, spreads and ratios as a Markdown table. README.md beside this file says what each row means.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmark.runtime.errors import NotFoundError, UserError
from benchmark.scales import Scale, get_scale
from scripts.perf.train_report import Job, Outcome, make_rows, print_report, scale_of

ROOT = Path(__file__).resolve().parents[2]
SEED = 0
WARM_UP_STEPS = 3  # of the bare model, not timed


class Stopwatch:
    """Hands batches on, and times from where the step after the first `skip` gets its batch to the last step's end."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.seconds = 0.0

    def watched(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches."""
        start = time.perf_counter()
        for number, batch in enumerate(batches):
            if number == self.job.skip:
                synchronize(self.job.device)
                start = time.perf_counter()
            yield batch
        synchronize(self.job.device)
        self.seconds = time.perf_counter() - start

    def outcome(self, whole: Outcome, batch_size: int) -> Outcome:
        """Return what was found of the steps that count; CPU time by their share of all steps."""
        if not self.job.skip:
            return whole
        samples = whole.samples - self.job.skip * batch_size
        cpu = whole.cpu_seconds * samples / whole.samples
        return Outcome(samples, self.seconds, 0.0, cpu, whole.threads)


class Watched:
    """open_clip's loader, its batches under a stopwatch."""

    def __init__(self, loader: Any, watch: Stopwatch) -> None:
        self.loader, self.watch = loader, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        return self.watch.watched(self.loader)


def training_data(job: Job, scale: Scale, limit: int) -> Any:
    """Return the harness's training data over the pool's first `limit` samples."""
    from benchmark.pool.index import read_index
    from benchmark.pool.subset import Subset
    from benchmark.training.data import TrainingData

    index = read_index(Path(job.pool_dir))
    return TrainingData.of(index, Subset.of(index.uids[:limit]), scale)


def measure_ours(job: Job) -> Outcome:
    """Train as `winnow train` does, on as many different samples as are seen (or all of a smaller pool)."""
    import benchmark.training.train
    from benchmark.training.data import batches_from

    training: Any = benchmark.training.train
    scale, watch = scale_of(job), Stopwatch(job)
    data = training_data(job, scale, scale.samples_seen)
    cpu_start, start = cpu_seconds(), time.perf_counter()
    data.batches(SEED)  # decodes where samples are held in memory; `train` finds them there
    decoding_seconds = time.perf_counter() - start
    if job.skip:
        training.batches_from = lambda *arguments: watch.watched(batches_from(*arguments))
        training.NUM_SAVES = 1  # only the end is left
    with tempfile.TemporaryDirectory() as folder:
        checkpoint_dir = Path(folder) / "seed-0" / "checkpoint"
        checkpoint_dir.mkdir(parents=True)
        training.train(data, SEED, checkpoint_dir, {"measurement": "speed"}, device=job.device, workers=job.workers)
    seconds = time.perf_counter() - start
    threads = scale.threads or torch.get_num_threads()
    whole = Outcome(scale.samples_seen, seconds, decoding_seconds, cpu_seconds() - cpu_start, threads)
    return watch.outcome(whole, scale.batch_size)


def measure_bare(job: Job) -> Outcome:
    """Take the recipe's steps on one batch that lies in memory, and do nothing else."""
    import open_clip
    from open_clip_train.precision import get_autocast

    from benchmark.models.build import build_model
    from benchmark.models.pixels import normalise
    from benchmark.training.data import batches_from
    from benchmark.training.exact import recipe_threads
    from benchmark.training.memory import keep_freed_memory
    from benchmark.training.step import make_optimizer

    scale = scale_of(job)
    one_step = replace(scale, samples_seen=scale.batch_size)
    batches = training_data(job, one_step, scale.batch_size).batches(SEED)
    batch = next(batches_from(batches, 0, 0, job.device))
    images, tokens = normalise(batch.images, scale), batch.tokens.long()
    if job.device.startswith("cuda"):  # as open_clip's trainer sets them
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    model: Any = build_model(scale.model, SEED).to(job.device).train()
    if scale.grad_checkpointing:
        model.set_grad_checkpointing()
    optimizer = make_optimizer(model, scale)
    loss_of = open_clip.ClipLoss()
    autocast = get_autocast(scale.precision, device_type=torch.device(job.device).type)
    scaler = torch.amp.GradScaler(job.device) if scale.precision == "amp" else None

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            out = model(images, tokens)
            loss = loss_of(out["image_features"], out["text_features"], out["logit_scale"])
        (loss if scaler is None else scaler.scale(loss)).backward()
        if scale.grad_clip_norm is not None:
            if scaler is not None:
                scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), scale.grad_clip_norm)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))

    keep_freed_memory(job.device)  # as our loop does
    with recipe_threads(scale):
        for _ in range(WARM_UP_STEPS):
            step()
        synchronize(job.device)
        cpu_start, start = cpu_seconds(), time.perf_counter()
        for _ in range(scale.steps):
            step()
        synchronize(job.device)
        seconds = time.perf_counter() - start
        return Outcome(scale.samples_seen, seconds, 0.0, cpu_seconds() - cpu_start, torch.get_num_threads())


def measure_decoding(job: Job) -> Outcome:
    """Take our batches as training does, without a model: reading, decoding, cropping and tokenizing alone."""
    from benchmark.training.data import batches_from
    from benchmark.training.exact import recipe_threads

    scale = scale_of(job)
    data = training_data(job, scale, scale.samples_seen)
    batches = data.batches(SEED)
    with recipe_threads(scale):
        cpu_start, start = cpu_seconds(), time.perf_counter()
        watch = Stopwatch(replace(job, device="cpu"))
        samples = sum(len(batch) for batch in watch.watched(batches_from(batches, 0, job.workers)))
        seconds = time.perf_counter() - start
        whole = Outcome(samples, seconds, 0.0, cpu_seconds() - cpu_start, torch.get_num_threads())
        return watch.outcome(whole, scale.batch_size)


def measure_open_clip(job: Job) -> Outcome:
    """Run `open_clip_train.main` on the pool's tars; what counts is the time within its `train_one_epoch`.

    Its imports, the building of the model and its last checkpoint are left out; the start of its workers is in.
    """
    from open_clip_train import main as trainer

    scale, watch = scale_of(job), Stopwatch(job)
    tars = sorted(str(path) for path in (Path(job.pool_dir) / "shards").glob("*.tar"))
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    outcomes: list[Outcome] = []
    original = trainer.train_one_epoch

    def timed(model: Any, data: Any, *args: Any, **options: Any) -> None:
        data["train"].dataloader = Watched(data["train"].dataloader, watch)
        cpu_start, start = cpu_seconds(), time.perf_counter()
        original(model, data, *args, **options)
        synchronize(job.device)
        samples = data["train"].dataloader.num_samples  # rounded up to whole batches for every worker
        seconds = time.perf_counter() - start
        outcomes.append(Outcome(samples, seconds, 0.0, cpu_seconds() - cpu_start, torch.get_num_threads()))

    trainer.train_one_epoch = timed
    with tempfile.TemporaryDirectory() as folder:
        arguments: dict[str, object] = {
            "train-data": "::".join(tars),
            "dataset-type": "webdataset",
            "train-num-samples": scale.samples_seen,
            "model": register_for_open_clip(scale.model, Path(folder)),
            "batch-size": scale.batch_size,
            "epochs": 1,
            "lr": scale.learning_rate,
            "beta1": scale.betas[0],
            "beta2": scale.betas[1],
            "eps": scale.eps,
            "wd": scale.weight_decay,
            "warmup": scale.warmup_steps,
            "precision": scale.precision,
            "workers": job.workers,
            "device": job.device,
            "seed": SEED,
            "logs": folder,
            "name": "speed",
        }
        if scale.grad_clip_norm is not None:
            arguments["grad-clip-norm"] = scale.grad_clip_norm
        command = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
        command += ["--image-mean", *map(str, scale.mean), "--image-std", *map(str, scale.std)]
        command += ["--local-loss", "--gather-with-grad"]
        if scale.grad_checkpointing:
            command.append("--grad-checkpointing")
        trainer.main(command)
    (outcome,) = outcomes
    # Its workers live until `main` returns, and count only when they have ended.
    whole = replace(outcome, cpu_seconds=outcome.cpu_seconds + cpu_seconds_of_children())
    return watch.outcome(whole, scale.batch_size)


def register_for_open_clip(name: str, folder: Path) -> str:
    """Make a model known to open_clip with its vocabulary's whole path, and return the name it has there.

    open_clip takes `bpe_path` as it stands; ours is relative to the folder of the configurations.
    """
    import open_clip

    from benchmark.models.build import MODELS_DIR, model_config

    config = model_config(name)
    bpe_path = (config["text_cfg"].get("tokenizer_kwargs") or {}).get("bpe_path")
    if bpe_path is None:
        return name
    config["text_cfg"] = {**config["text_cfg"], "tokenizer_kwargs": {"bpe_path": str(MODELS_DIR / bpe_path)}}
    path = folder / f"{name}-whole-path.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    return path.stem


LEGS = {
    "ours": measure_ours,
    "bare": measure_bare,
    "decoding": measure_decoding,
    "open_clip": measure_open_clip,
}


def synchronize(device: str) -> None:
    """Wait for what a GPU still has to do."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def cpu_seconds() -> float:
    """Return the CPU time of this process, all threads, and of its children that have ended."""
    return time.process_time() + cpu_seconds_of_children()


def cpu_seconds_of_children() -> float:
    """Return the CPU time of the child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_in_process(job: Job) -> Outcome:
    """Measure in a process of its own; raises ValueError with the end of what it said where it failed."""
    done = subprocess.run(
        [sys.executable, "-m", "scripts.perf.train_speed", "--job", json.dumps(asdict(job))],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise UserError(f"the measurement {job.row} failed:\n{done.stderr[-3000:]}", code="perf")
    return Outcome(**json.loads(done.stdout.splitlines()[-1]))


def make_jobs(options: argparse.Namespace) -> list[Job]:
    """Return the measurements of one round; open_clip's trainer runs with every given number of workers and threads."""
    scale = get_scale(options.scale)
    pool_dir = (options.pool_dir or Path("pools") / scale.name).resolve()
    num_tars = len(list((pool_dir / "shards").glob("*.tar")))
    if not num_tars:
        raise NotFoundError(f"{pool_dir} has no tars in {pool_dir / 'shards'}; build the pool first", code="perf")

    def job(leg: str, threads: int | None, workers: int) -> Job:
        return Job(
            leg=leg,
            scale=options.scale,
            pool_dir=str(pool_dir),
            samples=options.samples,
            batch_size=options.batch_size,
            device=options.device,
            stream=options.stream,
            threads=threads,
            workers=workers,
            skip=options.skip,
        )

    jobs = [job("ours", None, options.workers), job("bare", None, 0)]
    scale_of(jobs[0])  # refuses too few samples before anything runs
    if options.stream or scale.augmentation.kind != "shift":
        jobs.append(job("decoding", None, options.workers))
    for threads in options.open_clip_threads:
        for workers in options.open_clip_workers:
            if workers > num_tars:
                raise UserError(
                    f"open_clip's trainer needs a tar per worker; {pool_dir} has {num_tars} of them", code="perf"
                )
            jobs.append(job("open_clip", threads or None, workers))
    return jobs


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scale", default="nano", help="the recipe (default: nano)")
    parser.add_argument("--pool-dir", type=Path, help="the pool (default: pools/<scale>)")
    parser.add_argument("--samples", type=int, default=20_000, help="samples seen by every row (default: 20,000)")
    parser.add_argument("--batch-size", type=int, help="instead of the recipe's, where it does not fit")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--workers", type=int, default=0, help="our loop's (default: 0, as at the embedded scales)")
    parser.add_argument(
        "--open-clip-workers", type=int, nargs="+", default=[1, 2], help="numbers to try (default: 1 2)"
    )
    parser.add_argument(
        "--open-clip-threads",
        type=int,
        nargs="+",
        help="numbers to try, 0 for torch's default (default: 0, on CPU 0 1)",
    )
    parser.add_argument(
        "--skip", type=int, default=0, help="first steps that are not timed; no state is then saved (default: 0)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="interleaved repetitions (default: 3)")
    parser.add_argument(
        "--stream",
        action="store_true",
        help="decode on the way with open_clip's random crop, as scales do whose samples do not fit in memory",
    )
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.open_clip_threads is None:
        options.open_clip_threads = [0, 1] if options.device == "cpu" else [0]
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every measurement in turn, round after round, and print the report."""
    options = parse_options(arguments)
    if options.job is not None:
        job = Job(**json.loads(options.job))
        print(json.dumps(asdict(LEGS[job.leg](job))))
        return
    jobs = make_jobs(options)
    rounds: list[list[Outcome]] = []
    for number in range(options.rounds):
        rounds.append([])
        for job in jobs:
            outcome = run_in_process(job)
            rounds[-1].append(outcome)
            rate = outcome.samples / outcome.seconds
            print(f"round {number + 1}: {job.row}: {rate:,.0f} samples/s", file=sys.stderr, flush=True)
    print_report(jobs, make_rows(jobs, rounds), options.rounds)


if __name__ == "__main__":
    main()
