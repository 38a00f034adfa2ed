"""The health of a training run while it runs: a progress bar, JSON lines, and Weights & Biases where it is requested.

`seed-N/logs/health.jsonl` has a line every few seconds. A run that was killed repeats lines when it resumes: of two
lines with one step, the later counts. All of it is outside every hash.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm

from benchmark.runtime.errors import UserError
from benchmark.runtime.files import Json, digest
from benchmark.scales import Scale
from benchmark.training.data import Batch
from benchmark.training.ranks import SINGLE_PROCESS, Ranks
from benchmark.training.step import Curves, StepStats

HEALTH_NAME = "health.jsonl"
SECONDS_BETWEEN_LINES = 10.0
NUM_LINES = 200  # at even parts of the run, and whenever the seconds above have passed without one
WANDB_PROJECT = "winnow"


@dataclass(frozen=True)
class HealthLine:
    """How a run is doing: means over the steps since the line before, and the newest values."""

    step: int  # that have been taken
    samples_seen: int
    loss: float  # mean
    learning_rate: float
    logit_scale: float
    grad_norm: float | None  # mean, before clipping, of the steps that were taken
    samples_per_second: float
    waiting: float  # share of the time that went by waiting for data
    memory_gb: float  # most that the process has held so far, on the GPU where it trains there
    undecodable: int  # so far
    repeats: int  # so far, samples that stood in their batch already
    skipped: int  # steps since the line before that float16 overflowed in


@dataclass(frozen=True)
class WandbRun:
    """A run at Weights & Biases, the same for training and evaluation of a seed, however often it is killed."""

    mode: str
    exp_dir: Path
    seed: int

    @contextmanager
    def opened(self, config: Mapping[str, Json]) -> Iterator[Any]:
        """Open the run for a block; yields None where it is disabled. Raises ValueError where it cannot be opened."""
        if self.mode == "disabled":
            yield None
            return
        import wandb

        logs_dir = self.exp_dir / f"seed-{self.seed}" / "logs"
        logs_dir.mkdir(parents=True, exist_ok=True)
        try:
            run = wandb.init(
                project=WANDB_PROJECT,
                id=digest([str(self.exp_dir.resolve()), self.seed])[:16],
                name=f"{self.exp_dir.name} seed {self.seed}",
                group=self.exp_dir.name,
                dir=str(logs_dir.resolve()),  # its own process keeps the folder that it was started in
                mode="offline" if self.mode == "offline" else "online",
                resume="allow",
                config=dict(config),
                settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
            )
        except (wandb.errors.Error, OSError) as error:
            raise UserError(
                f"wandb={self.mode} does not work ({' '.join(str(error).split())}); "
                "run `wandb login`, or use wandb=offline and `wandb sync` later",
                code="wandb",
            ) from error
        code = 1
        try:
            yield run
            code = 0
        finally:
            run.finish(exit_code=code)

    def log_scores(self, scores: Mapping[str, float], config: Mapping[str, Json]) -> None:
        """Write task scores to the run's summary."""
        with self.opened(config) as run:
            if run is not None:
                for name, value in scores.items():
                    run.summary[f"eval/{name}"] = value


class Health:
    """Watches one training run; of several ranks only the first writes."""

    def __init__(
        self,
        seed_dir: Path,
        seed: int,
        scale: Scale,
        first_step: int,
        device: str,
        ranks: Ranks = SINGLE_PROCESS,
        run: Any = None,
    ) -> None:
        self.scale, self.device, self.is_writing, self.run = scale, device, ranks.is_first, run
        self.path = seed_dir / "logs" / HEALTH_NAME
        self.last_line = time.perf_counter()
        self.waited = self.total_waited = 0.0
        self.stats: list[StepStats] = []
        self.step, self.curves = first_step, Curves()
        self.bar = tqdm(
            total=scale.steps * scale.batch_size,
            initial=first_step * scale.batch_size,
            desc=f"train seed {seed}",
            unit="sample",
            unit_scale=scale.samples_seen > 1_000_000,
            disable=None if ranks.is_first else True,
            leave=False,
        )
        if ranks.is_first:
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Health:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.stats and kind is not KeyboardInterrupt:
            self._write(time.perf_counter())  # what no line has reported yet
        self.bar.close()

    def waited_for(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches, counting the time until each is there as waiting for data."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def note(self, step: int, curves: Curves) -> None:
        """Take in the step that was just taken, the curves' last; `step` steps in all."""
        self.step, self.curves = step, curves
        self.stats.append(curves.stats[-1])
        self.bar.update(self.scale.batch_size)
        now = time.perf_counter()
        if now - self.last_line >= SECONDS_BETWEEN_LINES or step % max(1, self.scale.steps // NUM_LINES) == 0:
            self._write(now)

    def _write(self, now: float) -> None:
        seconds, last = max(now - self.last_line, 1e-9), self.stats[-1]
        norms = [stats.grad_norm for stats in self.stats if math.isfinite(stats.grad_norm)]
        line = HealthLine(
            step=self.step,
            samples_seen=self.step * self.scale.batch_size,
            loss=sum(stats.loss for stats in self.stats) / len(self.stats),
            learning_rate=last.learning_rate,
            logit_scale=last.logit_scale,
            grad_norm=sum(norms) / len(norms) if norms else None,
            samples_per_second=round(len(self.stats) * self.scale.batch_size / seconds, 1),
            waiting=round(self.waited / seconds, 4),
            memory_gb=round(most_memory(self.device) / 1e9, 3),
            undecodable=self.curves.undecodable,
            repeats=self.curves.repeats,
            skipped=len(self.stats) - len(norms),
        )
        self.total_waited += self.waited
        self.stats, self.waited, self.last_line = [], 0.0, now
        if not self.is_writing:
            return
        self.bar.set_postfix(loss=f"{line.loss:.3f}", waiting=f"{line.waiting:.0%}", refresh=False)
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(line)) + "\n")
        if self.run is not None:
            values = {key: value for key, value in asdict(line).items() if key != "step" and value is not None}
            self.run.log({f"train/{key}": value for key, value in values.items()}, step=self.step)


def most_memory(device: str) -> int:
    """Return the most bytes that this process has held: on the GPU, or resident in memory."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kilobytes
