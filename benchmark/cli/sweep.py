"""Sweeps: how Hydra's launchers start the jobs of `winnow VERB -m ...`, here or on a cluster, and how they ended.

The jobs are known before the first one starts, and each writes `job-N.json` when it ends. So a job whose process died
without a message (killed, out of memory, cancelled in the queue) is listed at the end like one that failed.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.runtime.console import say, warn
from benchmark.runtime.errors import UserError
from benchmark.runtime.failures import Ending
from benchmark.runtime.files import write_json
from benchmark.runtime.stopping import Stopped

SUBMITIT_PREFIX = "submitit_"  # of the launchers that hydra-submitit-launcher brings
FIXED = ("hydra/sweeper", "hydra.sweeper.params", "hydra.sweeper._target_", "hydra.sweep", "hydra.mode")
ONE_PROCESS = ("hydra.launcher.nodes", "hydra.launcher.tasks_per_node")
PREEMPT_SIGNAL = signal.SIGUSR1  # what training saves itself on; submitit's own choice is SIGUSR2


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder, its jobs by number, and whether submitit launches them."""

    dir: Path
    jobs: tuple[str, ...]  # what sets each job apart from the others
    launcher: str

    @classmethod
    def plan(cls, overrides: Sequence[str], swept: set[str], launcher: str, verb: str) -> Sweep:
        """Make the sweep's folder and list its jobs, as Hydra's sweeper will number them."""
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
        from hydra.core.override_parser.overrides_parser import OverridesParser

        task = [text for text in overrides if not text.lstrip("+").startswith("hydra")]
        (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(task), None)
        return cls(new_sweep_dir(), tuple(job_name(job, swept, verb) for job in jobs), launcher)

    @property
    def uses_submitit(self) -> bool:
        """Tell whether the jobs run in processes of their own, by submitit."""
        return self.launcher.startswith(SUBMITIT_PREFIX)

    @property
    def is_local(self) -> bool:
        """Tell whether submitit runs the jobs on this machine."""
        return self.launcher == f"{SUBMITIT_PREFIX}local"

    def overrides(self, given: set[str]) -> list[str]:
        """Return Hydra's own options for the sweep: where its files are, and one log per job beside them."""
        overrides = [f"hydra.sweep.dir={self.dir}"]
        if self.uses_submitit:
            own = {"submitit_folder": self.dir / "logs", "stderr_to_stdout": "true"}
            overrides += [f"hydra.launcher.{key}={v}" for key, v in own.items() if f"hydra.launcher.{key}" not in given]
        return overrides

    @contextmanager
    def launched(self) -> Iterator[list[Any]]:
        """Run the block in which Hydra launches the jobs; the list takes submitit's handle of each, in their order.

        Hydra's launcher gives up at the first job that has no result; here all are waited for.
        """
        handles: list[Any] = []
        if not self.uses_submitit:
            yield handles
            return
        before = os.environ.get("SUBMITIT_PREEMPT_SIGNAL")
        os.environ["SUBMITIT_PREEMPT_SIGNAL"] = PREEMPT_SIGNAL.name.removeprefix("SIG")
        try:
            import submitit

            genuine = submitit.AutoExecutor.map_array

            def map_array(executor: Any, function: Any, *columns: Any) -> list[Any]:
                # The jobs inherit the mask: Ctrl-C is for this process, which then stops them in an orderly way.
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                try:
                    started = genuine(executor, function, *columns)
                    handles.extend(started)
                finally:
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
                logs = os.path.relpath(started[0].paths.folder)
                say(f"sweep: {len(handles)} of {len(self.jobs)} jobs started; logs in {logs}")
                return [_Awaited(job, may_lag=not self.is_local) for job in started]

            submitit.AutoExecutor.map_array = map_array  # type: ignore[assignment,method-assign]
            try:
                yield handles
            except KeyboardInterrupt:
                self._stop(handles)
                raise
            finally:
                submitit.AutoExecutor.map_array = genuine  # type: ignore[method-assign]
        finally:
            if before is None:
                del os.environ["SUBMITIT_PREEMPT_SIGNAL"]
            else:
                os.environ["SUBMITIT_PREEMPT_SIGNAL"] = before

    def _stop(self, handles: list[Any]) -> None:
        """Stop the jobs that run on this machine and wait for them; say how to end those that a cluster runs."""
        alive = [job for job in handles if not job.done()]
        if not self.is_local:
            ids = " ".join(dict.fromkeys(job.job_id.split("_")[0] for job in alive))
            if ids:
                say(f"the cluster continues with {len(alive)} jobs of this sweep; to stop them: scancel {ids}")
            return
        say(f"sweep: stopping {len(alive)} jobs")
        for job in alive:
            os.kill(int(job.job_id), signal.SIGTERM)  # of its controller, which hands it on
        for job in alive:
            job.wait()

    def say_progress(self) -> None:
        """Say how many jobs are done, where the sweep was interrupted."""
        outcomes = [json.loads(path.read_text()) for path in self.dir.glob("job-*.json")]
        succeeded = sum(outcome["failure"] is None for outcome in outcomes)
        say(f"\nsweep: {succeeded} of {len(self.jobs)} jobs succeeded before it was interrupted ({self.dir})")

    def remove_if_unused(self, handles: Sequence[Any]) -> None:
        """Remove the folder of a sweep that was refused before any job began."""
        if not handles and not any(self.dir.glob("job-*.json")):
            shutil.rmtree(self.dir)

    def outcome(self, handles: Sequence[Any]) -> int:
        """Say how many jobs succeeded, and list the others; return their number."""
        failures = {}
        for number, name in enumerate(self.jobs):
            path = outcome_path(self.dir, number)
            failure = json.loads(path.read_text())["failure"] if path.exists() else _without_outcome(number, handles)
            if failure is not None:
                log = f" (log: {os.path.relpath(handles[number].paths.stdout)})" if number < len(handles) else ""
                failures[number] = f"{name}: {failure}{log}"
        say(f"\nsweep: {len(self.jobs) - len(failures)} of {len(self.jobs)} jobs succeeded ({self.dir})")
        for failure in failures.values():
            warn(f"failed: {failure}")
        return len(failures)


class _Awaited:
    """A job of submitit's whose results never raise: how it ended is read from its files."""

    def __init__(self, job: Any, *, may_lag: bool) -> None:
        self.job = job
        self.may_lag = may_lag  # a file that another machine wrote may be seen late, and submitit waits for it

    def results(self) -> list[Any]:
        from hydra.core.utils import JobReturn, JobStatus
        from submitit.core.utils import UncompletedJobError

        self.job.wait()
        try:
            if self.may_lag or self.job.paths.result_pickle.exists():
                return self.job.results()
        except UncompletedJobError:
            pass
        return [JobReturn(status=JobStatus.COMPLETED)]


def check_launching(given: set[str], launcher: str, is_sweep: bool) -> None:
    """Raise UserError for options of Hydra's that a sweep cannot use, or a launcher that is not installed."""
    for key in given:
        if key.startswith(("hydra/launcher", "hydra.launcher", "hydra.sweep", "hydra/sweep")) and not is_sweep:
            raise UserError(f"{key} is for sweeps: winnow ... -m", code="sweep")
        if any(key == name or key.startswith(f"{name}.") for name in FIXED):
            raise UserError(
                f"{key} is fixed: a sweep runs every combination, in experiments/sweeps/<time>", code="sweep"
            )
        if key in ONE_PROCESS:
            raise UserError(
                f"{key}: a job of a sweep is one process; scripts/slurm trains on several GPUs and nodes", code="sweep"
            )
    if launcher.startswith(SUBMITIT_PREFIX):
        try:
            importlib.import_module("hydra_plugins.hydra_submitit_launcher")
        except ImportError as error:
            raise UserError(
                f"hydra/launcher={launcher} needs Hydra's submitit launcher: pip install -e '.[slurm]'",
                code="package-missing",
            ) from error


def new_sweep_dir() -> Path:
    """Make a sweep's folder, named by the time; one of the same second gets a number too."""
    base = Path("experiments") / "sweeps" / time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    for number in itertools.count(1):
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError


def job_name(overrides: Sequence[str], swept: set[str] | frozenset[str], verb: str) -> str:
    """Name a job after the options that set it apart from the others."""
    plain = [text.removeprefix("++") for text in overrides]
    return " ".join(text for text in plain if text.split("=")[0] in swept) or verb


def outcome_path(sweep_dir: Path, number: int) -> Path:
    """Return the file of how a job ended."""
    return sweep_dir / f"job-{number}.json"


def write_outcome(sweep_dir: Path, number: int, name: str, overrides: list[str], ending: Ending) -> None:
    """Write how a job ended: if it failed, the message and the code."""
    outcome = {"job": name, "overrides": overrides, "failure": ending.failure, "code": ending.code}
    write_json(outcome_path(sweep_dir, number), outcome)


def in_submitit() -> bool:
    """Tell whether this process is a job's own, started by submitit."""
    return "SUBMITIT_EXECUTOR" in os.environ


@contextmanager
def stops_raised() -> Iterator[None]:
    """In a process of submitit's, raise Stopped on the signals that ask for a stop; submitit's own handlers come back.

    It would let SIGTERM pass, and end the process on the other wherever it is.
    """

    def stop(number: int, _: Any) -> None:
        raise Stopped(number, "")

    before = {}
    if in_submitit():
        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, PREEMPT_SIGNAL)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def hand_on(number: int) -> None:
    """Hand a stop that the cluster asked for, once all is saved, to submitit, which requeues the job where it may."""
    if in_submitit() and number == PREEMPT_SIGNAL:
        try:
            signal.raise_signal(number)
        except RuntimeError as refusal:
            say(str(refusal))


def _without_outcome(number: int, handles: Sequence[Any]) -> str:
    """Return what is known of a job that wrote nothing."""
    if number >= len(handles):
        return "not started"
    state = str(handles[number].state)
    known = "" if state in ("FINISHED", "COMPLETED", "UNKNOWN") else f" (state: {state})"
    return f"its process ended without a message; was it killed, or out of memory or time?{known}"
