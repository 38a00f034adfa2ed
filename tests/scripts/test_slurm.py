"""Clusters: sweeps by Hydra's submitit launcher, and the three jobs of `scripts/slurm/`, on a fake cluster."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from benchmark.cli.command_table import COMMANDS
from benchmark.cli.main import EXIT_SWEEP, main
from benchmark.cli.options import option_names
from benchmark.registry import STRATEGIES
from benchmark.runtime.failures import EXIT_USER
from tests import fake_slurm

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/guides/cluster.md").read_text()
FILES = sorted((ROOT / "scripts" / "slurm").iterdir())
VERBS = ("filter", "train", "evaluate")
PLUGIN = '''"""Filters that end their process, or wait for a signal as training does."""

import os
import signal
import time
from contextlib import nullcontext
from pathlib import Path

import pandas as pd

from benchmark import register_filter
from benchmark.runtime.stopping import stop_signals
from benchmark.runtime.stopping import Stopped


@register_filter(columns=["text"])
def c_killed(rows: pd.DataFrame) -> pd.Series:
    """End as the kernel ends a process when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)
    return rows["text"] != ""


@register_filter(columns=["text"])
def c_waits(rows: pd.DataFrame) -> pd.Series:
    """Write the process's number and wait for a signal, as other work and as training does; the third time pass."""
    for path in (Path("waiting"), Path("waiting-again")):
        if not path.exists():
            with nullcontext([]) if path.name == "waiting" else stop_signals() as received:
                path.with_suffix(".tmp").write_text(str(os.getpid()))
                path.with_suffix(".tmp").rename(path)
                while not received:
                    time.sleep(0.02)
            raise Stopped(received[0], "all is saved")
    return rows["text"] != ""


@register_filter(columns=["text"])
def c_sleeps(rows: pd.DataFrame) -> pd.Series:
    """Take long."""
    Path("sleeping").touch()
    time.sleep(60)
    return rows["text"] != ""
'''


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, strategies):
    """Work in a folder with the plugin; forget what it registered."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "my_filters.py").write_text(PLUGIN)
    before = dict(STRATEGIES)
    yield tmp_path
    STRATEGIES.clear()
    STRATEGIES.update(before)


@pytest.fixture
def cluster(folder):
    return fake_slurm.install(folder / "bin", ROOT)


def wait_for(path):
    deadline = time.monotonic() + 600
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return path


def test_in_processes_of_their_own_jobs_die_alone_and_are_all_listed(pico_pool, folder, capsys):
    """One job is killed, one is stopped and started again, twice, one fails, and one is well."""

    def preempt():
        for name in ("waiting", "waiting-again"):
            os.kill(int(wait_for(folder / name).read_text()), signal.SIGUSR1)

    threading.Thread(target=preempt, daemon=True).start()
    sweep = ["filter", "-m", "hydra/launcher=submitit_local", "scale=pico", f"pool_dir={pico_pool}"]
    sweep += ["plugins=my_filters.py", "filters=c_killed,c_waits,clip_score,no_filter"]
    assert main([*sweep, "filters.clip_score.threshold=5"]) == EXIT_SWEEP
    captured = capsys.readouterr()
    assert "4 of 4 jobs started" in captured.out and "2 of 4 jobs succeeded" in captured.out
    killed, failed = [line for line in captured.err.splitlines() if line.startswith("warning: failed: ")]
    assert "filters=c_killed: its process ended without a message; was it killed" in killed
    assert "filters=clip_score: nothing is left of the pool" in failed
    logs = [Path(line.split("(log: ")[1].rstrip(")")) for line in (killed, failed)]
    assert "winnow: nothing is left of the pool" in logs[1].read_text()
    assert all(log.parent.parent.parent == Path("experiments/sweeps") for log in logs)
    names = sorted(
        path.name.split("-")[0] for path in Path("experiments/pico").iterdir() if (path / "subset.npy").exists()
    )
    assert names == ["c_waits", "no_filter"]
    assert "SUBMITIT_PREEMPT_SIGNAL" not in os.environ and "HYDRA_FULL_ERROR" not in os.environ


def test_ctrl_c_stops_the_jobs_and_ends_in_one_sentence(pico_pool, folder):
    command = [sys.executable, "-m", "benchmark", "filter", "-m", "hydra/launcher=submitit_local", "scale=pico"]
    command += [f"pool_dir={pico_pool}", "plugins=my_filters.py", "filters=c_sleeps"]
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
    finally:
        signal.signal(signal.SIGINT, handler)
    wait_for(folder / "sleeping")
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all
    out, err = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGINT
    assert "0 of 1 jobs succeeded before it was interrupted" in out
    assert err.count("\n\n") == 0 and "winnow: interrupted by SIGINT" in err and "Traceback" not in err
    (job,) = [json.loads(path.read_text()) for path in Path("experiments/sweeps").glob("*/job-*.json")]
    assert job["failure"] == "interrupted by SIGTERM"


def test_slurm_gets_one_array_with_the_settings_given(pico_pool, cluster, monkeypatch, capsys):
    """The page's command, with another verb, which takes less time."""
    for name, value in cluster.items():
        monkeypatch.setenv(name, value)
    (command,) = [line for line in PAGE.splitlines() if "submitit_slurm" in line]
    arguments = ["filter", *command.split()[2:], "scale=pico", f"pool_dir={pico_pool}"]
    assert main([*arguments, "+hydra.launcher.additional_parameters.reservation=night"]) == 0
    assert "2 of 2 jobs succeeded" in capsys.readouterr().out
    (job,) = fake_slurm.submissions(cluster)
    wanted = [
        "--partition=gpu",
        "--time=120",
        "--job-name=winnow",
        "--signal=USR1@120",
        "--array=0-1%2",
        "--reservation=night",
    ]
    assert set(wanted) <= set(job["written"])
    assert len(list(Path("experiments/pico").glob("*/subset.npy"))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hydra/launcher=submitit_local"], "hydra/launcher is for sweeps"),
        (["-m", "hydra/launcher=submitit_locl"], "Could not find 'hydra/launcher/submitit_locl' Available options"),
        (["-m", "hydra/launcher=submitit_local", "hydra.launcher.partition=x"], "Key 'partition' not in"),
        (["-m", "hydra/launcher=submitit_slurm"], 'Could not detect "srun"'),
        (["-m", "hydra.sweep.dir=here"], "hydra.sweep.dir is fixed"),
        (["-m", "hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2"], "a job of a sweep is one process"),
        (["-m", "--cfg=job"], "leave out -m"),
    ],
)
def test_wrong_use_is_met_by_one_sentence_and_leaves_no_sweep(arguments, message, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["filter", *arguments, "scale=pico"]) == EXIT_USER
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("winnow: ") and message in line
    assert not list(Path().glob("experiments/sweeps/*"))


def test_without_the_extra_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "hydra_plugins.hydra_submitit_launcher", None)
    assert main(["filter", "-m", "hydra/launcher=submitit_local", "filters=no_filter,random"]) == EXIT_USER
    assert "pip install -e '.[slurm]'" in capsys.readouterr().err
    assert not Path("experiments").exists()


def test_the_pages_submission_is_taken(cluster):
    stand_in(cluster, 'test "$2" = --cfg=job')
    (command,) = [line for line in PAGE.splitlines() if line.startswith("scripts/slurm/submit.sh ")]
    done = submit(cluster, *shlex.split(command)[1:])
    assert done.returncode == 0, done.stderr
    assert len(fake_slurm.submissions(cluster)) == 3


def submit(cluster, *arguments):
    return subprocess.run([ROOT / "scripts/slurm/submit.sh", *arguments], env=cluster, capture_output=True, text=True)


def stand_in(cluster, code):
    """Put another program in the place of `winnow`."""
    (Path(cluster["FAKE_SLURM"]).parent / "winnow").write_text(f"#!/bin/sh\n{code}\n")


def test_three_jobs_are_chained_and_training_is_queued_again_before_its_time_limit(pico_pool, cluster, folder):
    """The first time, a program that takes the signal as training does stands in its place: it starts at once."""
    cluster[fake_slurm.SIGNAL_AT] = str(folder / "waiting")
    genuine = (Path(cluster["FAKE_SLURM"]).parent / "winnow").read_text().splitlines()[1]
    waiting = "trap 'echo saved; exit 138' USR1; touch waiting; for i in $(seq 300); do sleep 0.1; done; exit 1"
    stand_in(cluster, f'if [ "$1 $2" = "train workers=0" ] && [ ! -e waiting ]; then {waiting}; fi\n{genuine}')
    common = ["exp_dir=experiments/mine", "scale=pico", f"pool_dir={pico_pool}"]
    done = submit({**cluster, "WINNOW_GPUS": "0"}, *common, "filters=clip_score", "device=cpu", "seeds=0")
    assert done.stdout.splitlines() == ["filter: job 100", "train: job 101", "evaluate: job 102"], done.stderr
    log = next(Path("experiments/mine/logs").glob("slurm-101-*.out")).read_text()
    jobs = fake_slurm.submissions(cluster)
    assert [(Path(job["file"]).stem, job["state"], job["runs"]) for job in jobs] == [
        ("filter", "COMPLETED", 1),
        ("train", "COMPLETED", 2),
        ("evaluate", "COMPLETED", 1),
    ], log
    assert [option for job in jobs for option in job["options"] if "dependency" in option] == [
        "--dependency=afterok:100",
        "--dependency=afterok:101",
    ]
    assert [job["arguments"] for job in jobs] == [
        [*common, "filters=clip_score"],
        [*common, "device=cpu", "seeds=0"],
        [*common, "device=cpu", "seeds=0"],
    ]
    assert "\nsaved\n" in log and "queued again" in log
    assert list(json.loads(Path("experiments/mine/entry.json").read_text())["seeds"]) == ["0"]


def test_a_failing_filter_holds_the_other_jobs_back(cluster):
    stand_in(cluster, 'test "$2" = --cfg=job || exit 2')
    assert submit(cluster, "exp_dir=mine", "filters=basic").returncode == 0
    jobs = fake_slurm.submissions(cluster)
    assert [job["state"] for job in jobs] == ["FAILED", "CANCELLED", "CANCELLED"]
    assert all("--kill-on-invalid-dep=yes" in job["options"] for job in jobs[1:])


def test_what_the_cluster_has_of_its_own_comes_from_the_environment(cluster):
    stand_in(cluster, "exit 1")
    assert submit(cluster, "exp_dir=mine").returncode == 1  # the options are refused
    assert fake_slurm.submissions(cluster) == []
    stand_in(cluster, 'test "$2" = --cfg=job')
    settings = {"WINNOW_CPU_PARTITION": "cpu", "WINNOW_GPU_PARTITION": "gpu", "WINNOW_NODES": "2", "WINNOW_GPUS": "8"}
    settings["WINNOW_FILTER_SBATCH"] = "--mem=100G --time=1:00:00"
    submit({**cluster, **settings}, "exp_dir=my exp", "filters=[basic,clip_score]", "tasks=vtab", "workers=3")
    options = [set(job["options"]) for job in fake_slurm.submissions(cluster)]
    assert options[0] >= {"--partition=cpu", "--mem=100G", "--time=1:00:00", "--output=my exp/logs/slurm-%j-%x.out"}
    assert options[1] >= {"--partition=gpu", "--nodes=2", "--gpus-per-node=8"}
    assert options[2] >= {"--partition=gpu", "--gpus-per-node=1"} and "--nodes=2" not in options[2]
    assert [job["arguments"] for job in fake_slurm.submissions(cluster)] == [
        ["exp_dir=my exp", "filters=[basic,clip_score]", "workers=3"],
        ["exp_dir=my exp", "workers=3"],
        ["exp_dir=my exp", "tasks=vtab", "workers=3"],
    ]


KNOWN = {verb: option_names(COMMANDS[verb].verb.config) for verb in VERBS}
OPTIONS = {name: [verb for verb in VERBS if name in KNOWN[verb]] for verb in VERBS for name in KNOWN[verb]}
NOT_SUBMITTED = {"dry_run", "model", "checkpoint", "out_dir"}
NOT_HANDED_ON = {("device", "filter")}  # whose job has no GPU


def test_every_option_goes_to_the_stages_that_know_it_and_to_no_other(cluster):
    stand_in(cluster, 'test "$2" = --cfg=job')
    options = {name: f"{name}=1" for name in [*OPTIONS, "filters"] if name not in NOT_SUBMITTED}
    done = submit(cluster, *options.values())
    assert done.returncode == 0, done.stderr
    handed = dict(zip(VERBS, (job["arguments"] for job in fake_slurm.submissions(cluster)), strict=True))
    for name, option in options.items():
        expected = [verb for verb in OPTIONS.get(name, ["filter"]) if (name, verb) not in NOT_HANDED_ON]
        assert [verb for verb in VERBS if option in handed[verb]] == expected, name


@pytest.mark.parametrize("name", sorted(NOT_SUBMITTED))
def test_what_is_no_option_of_an_experiments_stages_is_refused_before_anything_is_submitted(cluster, name):
    done = submit(cluster, "exp_dir=mine", f"{name}=true")
    assert done.returncode == EXIT_USER and f"submit.sh: {name}= is for winnow itself" in done.stderr
    assert fake_slurm.submissions(cluster) == [] and not Path("mine").exists()


def test_a_misspelt_option_or_no_folder_submits_nothing(cluster):
    done = submit(cluster, "exp_dir=mine", "scale=pico", "seds=0")
    assert done.returncode == EXIT_USER and "winnow train has no option 'seds'. Did you mean 'seeds'?" in done.stderr
    done = submit(cluster, "scale=pico")
    assert done.returncode == 2 and "give exp_dir=" in done.stderr
    assert fake_slurm.submissions(cluster) == [] and not Path("mine").exists()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_files_are_sound_bash(path):
    subprocess.run(["bash", "-n", path], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", path], check=True)
