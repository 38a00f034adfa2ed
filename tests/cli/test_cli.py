"""The command line as a person uses it, rightly and wrongly: exit codes, one clear sentence, nothing half-written."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmark.cli.main import EXIT_SWEEP, main
from benchmark.cli.sweep import new_sweep_dir
from benchmark.pool.uids import UID_DTYPE, parse_uids
from benchmark.registry import STRATEGIES, SUITES, TASKS
from benchmark.runtime.failures import EXIT_USER
from benchmark.runtime.locks import LOCK_NAME
from tests.conftest import uid, write_pool

PLUGIN = '''"""Long captions: keep the pairs that say most."""

import pandas as pd

from benchmark import register_filter


@register_filter(columns=["text"], fraction=0.5)
def c_long_captions(rows: pd.DataFrame, *, per_word: bool = False) -> pd.Series:
    """Score a pair by the length of its caption."""
    return rows["text"].str.split().str.len().astype(float) if per_word else rows["text"].str.len().astype(float)
'''


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, strategies):
    """Work in an empty folder; forget what plugins registered."""
    monkeypatch.chdir(tmp_path)
    before = dict(STRATEGIES)
    yield tmp_path
    STRATEGIES.clear()
    STRATEGIES.update(before)


@pytest.fixture(scope="module")
def finished_run(pico_pool, tmp_path_factory):
    """A whole run with two seeds."""
    exp_dir = tmp_path_factory.mktemp("finished") / "exp"
    assert main(["run", "scale=pico", f"pool_dir={pico_pool}", f"exp_dir={exp_dir}", "seeds=[0,1]"]) == 0
    return exp_dir


def ending(capsys, *arguments, code=EXIT_USER):
    """Run a command that must fail; return its one sentence and the code of the error."""
    capsys.readouterr()
    assert main(list(arguments)) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    lines = [line for line in captured.err.splitlines() if line.strip()]
    match = re.fullmatch(r"winnow: (.+) \[([a-z-]+)\]", lines[-1])
    assert match, lines[-1]
    return match[1], match[2]


def failing(capsys, *arguments, code=EXIT_USER):
    """Run a command that must fail; return its one sentence, for the values that it must name."""
    return ending(capsys, *arguments, code=code)[0]


def refused(capsys, *arguments):
    """Run a command that must be refused; return the code of the error."""
    return ending(capsys, *arguments)[1]


def test_a_run_writes_what_the_design_says(finished_run):
    names = {str(path.relative_to(finished_run)) for path in finished_run.rglob("*") if path.is_file()}
    for seed in (0, 1):
        assert {
            f"seed-{seed}/checkpoint/model.safetensors",
            f"seed-{seed}/checkpoint/checkpoint.json",
            f"seed-{seed}/eval/pico-shapes.json",
            f"seed-{seed}/eval/pico-shapes.parquet",
            f"seed-{seed}/eval_results.jsonl",
        } <= names
    assert {
        "subset.npy",
        "subset.json",
        "costs.jsonl",
        "entry.json",
        "report/index.html",
        "report/report.json",
    } <= names
    assert not [name for name in names if name.endswith(".tmp")]
    entry = json.loads((finished_run / "entry.json").read_text())
    assert set(entry["seeds"]) == {"0", "1"} and len(entry["seeds"]["0"]) == 16
    lines = [json.loads(line) for line in (finished_run / "seed-0" / "eval_results.jsonl").read_text().splitlines()]
    assert {line["key"]: line["metrics"]["main_metric"] for line in lines} == entry["seeds"]["0"]


def test_subset_file_is_datacomps(finished_run, pico_pool):
    uids = np.load(finished_run / "subset.npy", allow_pickle=False)
    assert uids.dtype == UID_DTYPE
    frame = pd.concat([pd.read_parquet(path) for path in (pico_pool / "metadata").glob("*.parquet")])
    best = frame.sort_values(["clip_l14_similarity_score", "uid"], ascending=[False, True])["uid"][
        : round(0.3 * len(frame))
    ]
    expected = np.array([(int(text[:16], 16), int(text[16:32], 16)) for text in best], np.dtype("u8,u8"))
    expected.sort()
    assert (uids == expected).all()


def test_a_second_run_reuses_and_a_new_seed_adds_a_folder(finished_run, pico_pool, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*.safetensors")}
    assert main(["run", "scale=pico", f"pool_dir={pico_pool}", f"exp_dir={finished_run}", "seeds=[0,1]"]) == 0
    out = capsys.readouterr().out
    assert "filter: up to date, skipping" in out and "train: up to date, skipping seed 0" in out
    assert {path: path.stat().st_mtime_ns for path in finished_run.rglob("*.safetensors")} == before


def test_the_table_shows_the_run_and_says_what_may_be_claimed(finished_run, capsys):
    assert main(["leaderboard", "table", "--board", "pico", "--entry", str(finished_run / "entry.json")]) == 0
    out = capsys.readouterr().out
    assert "clip_score-0.3" in out and "(2)" in out
    assert "no evidence" in out and "about web data" in out
    assert (
        main(
            ["leaderboard", "table", "--board", "pico", "--entry", str(finished_run / "entry.json"), "--format", "csv"]
        )
        == 0
    )
    assert capsys.readouterr().out.count("\n") >= 2


def test_the_tasks_and_the_agreement_are_printed(finished_run, capsys):
    entry = str(finished_run / "entry.json")
    assert main(["leaderboard", "table", "--tasks", "--board", "pico", "--entry", entry]) == 0
    out = capsys.readouterr().out
    assert "chance" in out and "pico/shapes" in out
    assert main(["leaderboard", "agreement", "--board", "pico"]) == 0
    assert "82 %" in capsys.readouterr().out
    assert main(["leaderboard", "agreement", "--format", "csv"]) == 0
    assert capsys.readouterr().out.count("\n") == 9


def test_stages_can_be_run_one_by_one_and_give_the_same(finished_run, pico_pool):
    common = ["scale=pico", f"pool_dir={pico_pool}", "exp_dir=mine"]
    assert main(["filter", *common]) == 0
    assert main(["train", *common, "seeds=1", "workers=1"]) == 0
    assert main(["evaluate", *common, "seeds=1"]) == 0
    for name in ("subset.npy", "subset.json", "seed-1/checkpoint/model.safetensors", "seed-1/eval_results.jsonl"):
        assert (Path("mine") / name).read_bytes() == (finished_run / name).read_bytes(), name


def test_the_default_folder_is_named_after_the_filters_and_their_options(pico_pool):
    common = ["filter", "scale=pico", f"pool_dir={pico_pool}"]
    assert main([*common, "filters=[basic,clip_score]", "filters.clip_score.fraction=0.5"]) == 0
    assert main([*common, "filters=[basic,clip_score]", "filters.clip_score.fraction=0.6"]) == 0
    assert main([*common, "filters=[basic,clip_score]", "filters.clip_score.fraction=0.6", "workers=1"]) == 0
    assert [len(list(Path("experiments/pico").glob("basic+clip_score-*")))] == [2]


def test_somebody_elses_subset_and_within(pico_pool, capsys):
    common = ["filter", "scale=pico", f"pool_dir={pico_pool}"]
    assert main([*common, "exp_dir=one", "filters=clip_score", "filters.clip_score.fraction=0.5"]) == 0
    assert main([*common, "exp_dir=two", "subset=one/subset.npy"]) == 0
    assert Path("two/subset.npy").read_bytes() == Path("one/subset.npy").read_bytes()
    assert main([*common, "exp_dir=three", "within=one/subset.npy", "filters.clip_score.fraction=0.5"]) == 0
    sizes = [len(np.load(f"{name}/subset.npy")) for name in ("one", "three")]
    assert sizes[1] == round(sizes[0] / 2)
    assert main(["subset", "info", "three/subset.npy"]) == 0
    assert f"{sizes[1]:,} (copies counted)" in capsys.readouterr().out


def test_a_plugin_from_anywhere_runs_in_this_process_in_workers_and_in_sweeps(pico_pool, tmp_path, capsys):
    (tmp_path / "elsewhere").mkdir()
    plugin = tmp_path / "elsewhere" / "my_filter.py"
    plugin.write_text(PLUGIN)
    common = ["scale=pico", f"pool_dir={pico_pool}", f"plugins=[{plugin}]"]
    assert main(["filter", *common, "exp_dir=alone", "filters=c_long_captions"]) == 0
    assert main(["filter", *common, "exp_dir=workers", "filters=c_long_captions", "workers=2"]) == 0
    assert Path("alone/subset.npy").read_bytes() == Path("workers/subset.npy").read_bytes()
    sweep = ["filters=c_long_captions,no_filter", "filters.c_long_captions.per_word=true,false"]
    assert main(["filter", "-m", *common, *sweep]) == 0
    assert "4 of 4 jobs succeeded" in capsys.readouterr().out
    assert len(list(Path("experiments/pico").glob("c_long_captions-*"))) == 2
    assert len(list(Path("experiments/pico").glob("no_filter-*"))) == 1
    assert main(["filter", "--help", f"plugins=[{plugin}]"]) == 0
    assert "filters.c_long_captions.per_word: bool (default: False)" in capsys.readouterr().out


def test_an_edited_filter_gets_a_folder_of_its_own(pico_pool, tmp_path, capsys):
    plugin = tmp_path / "my_filter.py"
    plugin.write_text(PLUGIN)
    command = ["filter", "scale=pico", f"pool_dir={pico_pool}", f"plugins={plugin}", "filters=c_long_captions"]
    assert main(command) == 0
    plugin.write_text(PLUGIN.replace(".astype(float) if", ".astype(float) * -1 if"))
    assert main(command) == 0
    assert len(list(Path("experiments/pico").glob("c_long_captions-*"))) == 2


def test_what_nobody_foresaw_does_not_stop_a_sweep_either(pico_pool, capsys, monkeypatch):
    from benchmark.cli.commands import filter as command

    genuine = command.VERB.work

    def fail_at_random(options, log):
        if options.choice.name == "random":
            raise TypeError("a defect")
        genuine(options, log)

    monkeypatch.setattr(command, "VERB", replace(command.VERB, work=fail_at_random))
    sweep = ["filter", "-m", "scale=pico", f"pool_dir={pico_pool}", "filters=random,no_filter"]
    assert main(sweep) == EXIT_SWEEP
    captured = capsys.readouterr()
    assert "1 of 2 jobs succeeded" in captured.out
    assert "failed: filters=random: internal error: TypeError: a defect" in captured.err


def test_sweeps_of_one_second_have_folders_of_their_own(folder, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda *_: "20260101-000000")
    assert [new_sweep_dir().name for _ in range(3)] == ["20260101-000000", "20260101-000000-2", "20260101-000000-3"]


def test_a_value_that_cannot_be_resolved_does_not_stop_a_sweep(pico_pool, capsys):
    sweep = ["filter", "-m", "scale=pico", f"pool_dir={pico_pool}", "filters=no_filter", "within='${nowhere}',null"]
    assert main(sweep) == EXIT_SWEEP
    captured = capsys.readouterr()
    assert "1 of 2 jobs succeeded" in captured.out
    assert "Interpolation key 'nowhere' not found" in captured.err and "Traceback" not in captured.err


def test_an_interrupted_sweep_says_how_far_it_came(pico_pool, capsys, monkeypatch):
    from benchmark.cli.commands import filter as command

    genuine = command.VERB.work

    def interrupt(options, log):
        if options.choice.name == "random":
            raise KeyboardInterrupt
        genuine(options, log)

    monkeypatch.setattr(command, "VERB", replace(command.VERB, work=interrupt))
    with pytest.raises(SystemExit, match="130"):
        main(["filter", "-m", "scale=pico", f"pool_dir={pico_pool}", "filters=no_filter,random,basic"])
    assert "1 of 3 jobs succeeded before it was interrupted" in capsys.readouterr().out


def test_a_failing_job_does_not_stop_a_sweep_and_is_listed(pico_pool, capsys):
    command = ["filter", "-m", "scale=pico", f"pool_dir={pico_pool}", "filters=clip_score,no_filter"]
    assert main([*command, "filters.clip_score.threshold=5"]) == EXIT_SWEEP
    captured = capsys.readouterr()
    assert "1 of 2 jobs succeeded" in captured.out
    assert "failed: filters=clip_score" in captured.err and "nothing is left of the pool" in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["rnu"], "unknown-verb"),
        (["run", "filters=clip_scor"], "unknown-filter"),
        (["run", "filters=[basic,clip_scor]"], "unknown-filter"),
        (["run", "scale=nanoo"], "unknown-scale"),
        (["run", "tasks=nano/shape"], "unknown-task"),
        (["run", "seed=1"], "unknown-option"),
        (
            ["run", "filters.clip_score.fractoin=0.3"],
            "unknown-option",
        ),
        (["run", "filters.clip_score.fraction=0"], "option-value"),
        (["run", "filters.clip_score.fraction=1.5"], "option-value"),
        (
            ["run", "filters.clip_score.fraction=0.3", "filters.clip_score.threshold=0.2"],
            "option-conflict",
        ),
        (["run", "filters.clip_score.arch=3"], "option-type"),
        (["run", "filters=basic", "filters.clip_score.fraction=0.3"], "option-conflict"),
        (["run", "filters=no_filter,basic"], "sweep"),
        (["run", "seeds=[0,a]"], "option-type"),
        (["run", "seeds=[1,1]"], "option-value"),
        (["run", "device=tpu"], "option-value"),
        (["run", "pool_seed=-1"], "option-type"),
        (["run", "workers=many"], "option-type"),
        (["filter", "executor=slurm"], "option-value"),
        (["run", "accumulation=0"], "option-type"),
        (["run", "seeds=18446744073709551616"], "option-value"),
        (["train", "accumulation=1.5", "exp_dir=x"], "option-type"),
        (["run", "wandb=yes"], "option-value"),
        (["run", "scale=mine.yaml"], "scale-not-found"),
        (["run", "scale=small", "device=cpu"], "pool-not-found"),
        (["run", "plugins=nowhere.py"], "plugin-not-found"),
        (["run", "subset=nowhere.npy"], "subset-not-found"),
        (["run", "subset=x.npy", "filters=basic"], "option-conflict"),
        (["run", "filters=[basic,basic]"], "option-value"),
        (["run", "filters=basic", "filters=clip_score"], "option-conflict"),
        (["run", "~filters.clip_score"], "option-syntax"),
        (["run", "pool_dir=a&b{"], "option-syntax"),
        (["run", "fast"], "option-syntax"),
        (["run", "filters=[basic"], "option-syntax"),
        (["run", "--fast"], "usage"),
        (["run", "-m", "exp_dir=here", "filters=basic,no_filter"], "sweep"),
        (["run", "+filters=no_filter"], "option-syntax"),
        (
            ["run", "filters.clip_score=3"],
            "unknown-option",
        ),
        (["run", "filters.clip_score.threshold=inf"], "option-value"),
        (["filter", "filters=basic", "filters.basic.max_aspect=inf"], "option-value"),
        (["filter", "filters=dedup", "filters.dedup.seed=-1"], "option-value"),
        (["train"], "option-missing"),
        (["train", "exp_dir=nowhere", "pool_dir=."], "pool-not-found"),
        (["report"], "option-missing"),
        (["report", "exp_dir=nowhere", "pool_dir=nowhere"], "pool-not-found"),
        (["report", "exp_dir=nowhere", "seeds=0"], "unknown-option"),
        (["train", "filters=basic"], "unknown-option"),
        (["filter", "pool_dir=nowhere/at/all", "scale=pico", "filters=nofilter"], "unknown-filter"),
        (["pool"], "usage"),
        (["pool", "build", "--scale", "nanoo"], "unknown-scale"),
        (["pool", "build", "--pool-seed", "x"], "usage"),
        (["subset", "info", "nowhere.npy"], "subset-not-found"),
        (["list", "filter"], "usage"),
        (["leaderboard", "table", "--board", "mega"], "board-not-found"),
        (["leaderboard", "table", "--entry", "nowhere.json"], "not-found"),
    ],
)
def test_wrong_use_is_met_by_one_sentence_before_anything_is_written(folder, capsys, arguments, code):
    assert refused(capsys, *arguments) == code
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["rnu"], "unknown verb 'rnu'. Did you mean 'run'?"),
        (["run", "filters=clip_scor"], "unknown filter 'clip_scor'. Did you mean 'clip_score'?"),
        (["run", "filters=[basic,clip_scor]"], "unknown filter 'clip_scor'. Did you mean 'clip_score'?"),
        (["run", "scale=nanoo"], "unknown scale 'nanoo'. Did you mean 'nano'?"),
        (["run", "tasks=nano/shape"], "unknown task or group 'nano/shape'. Did you mean 'nano/shapes'?"),
        (["run", "seed=1"], "winnow run has no option 'seed'. Did you mean 'seeds'?"),
        (
            ["run", "filters.clip_score.fractoin=0.3"],
            "filter 'clip_score' has no option 'fractoin'. Did you mean 'fraction'?",
        ),
        (["filter", "pool_dir=nowhere/at/all", "scale=pico", "filters=nofilter"], "Did you mean 'no_filter'?"),
    ],
)
def test_a_misspelt_name_is_met_by_the_nearest_one(capsys, arguments, hint):
    assert hint in failing(capsys, *arguments)


def test_what_needs_a_gpu_says_so_where_there_is_none(folder, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert refused(capsys, "train", "scale=small") == "no-gpu"
    assert refused(capsys, "run", "device=cuda") == "no-gpu"
    assert list(folder.iterdir()) == []


def test_a_full_disk_says_what_to_do(folder, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    from benchmark.cli.commands import filter as command

    monkeypatch.setattr(command, "VERB", replace(command.VERB, work=full))
    assert refused(capsys, "filter") == "disk-full"


def test_ranks_are_for_training_alone(folder, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert refused(capsys, "filter") == "not-on-ranks"
    assert refused(capsys, "train", "-m", "exp_dir=a,b") == "not-on-ranks"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        ({"uid": [uid(1)], "text": ["a"]}, "column-missing"),
        ({"uid": [uid(1), None], "clip_l14_similarity_score": [0.1, 0.2]}, "uid-invalid"),
        ({"uid": ["1" * 31], "clip_l14_similarity_score": [0.1]}, "uid-invalid"),
        ({"uid": [uid(1)], "clip_l14_similarity_score": [np.nan]}, "nothing-left"),
        ({"id": [uid(1)]}, "column-missing"),
    ],
)
def test_a_wrong_pool_is_met_by_one_sentence(folder, capsys, columns, code):
    write_pool(folder / "bad", columns)
    assert refused(capsys, "filter", "scale=pico", "pool_dir=bad", "exp_dir=exp") == code
    assert not (folder / "exp").exists() or {path.name for path in (folder / "exp").iterdir()} <= {LOCK_NAME}


def test_a_folder_that_is_no_pool_is_met_by_one_sentence_and_left_alone(folder, capsys):
    (folder / "stuff").mkdir()
    (folder / "stuff" / "notes.txt").write_text("mine")
    assert refused(capsys, "run", "scale=pico", "pool_dir=stuff") == "pool-not-found"
    assert refused(capsys, "pool", "build", "--scale=pico", "--pool-dir=stuff") == "folder-not-empty"
    assert [path.name for path in (folder / "stuff").iterdir()] == ["notes.txt"]


def test_an_experiment_made_with_other_settings_is_refused_and_both_are_named(finished_run, pico_pool, capsys):
    before = (finished_run / "subset.json").read_bytes()
    common = ["scale=pico", f"pool_dir={pico_pool}", f"exp_dir={finished_run}"]
    message = failing(capsys, "run", *common, "filters.clip_score.fraction=0.4")
    assert (
        "was made with other settings (subset.json)" in message
        and "filters.0.cut.fraction is 0.3 there and 0.4 now" in message
    )
    message = failing(capsys, "run", *common, "filters=no_filter")
    assert '"clip_score"' in message and '"no_filter"' in message
    assert (finished_run / "subset.json").read_bytes() == before


def test_a_subset_of_another_pool_is_refused(pico_pool, capsys):
    np.save("foreign.npy", parse_uids([uid(1), uid(2)]))
    message = failing(capsys, "filter", "scale=pico", f"pool_dir={pico_pool}", "subset=foreign.npy")
    assert "2 of 2 uids are not in" in message and uid(1) in message
    np.save("numbers.npy", np.arange(3))
    assert refused(capsys, "filter", "scale=pico", f"pool_dir={pico_pool}", "subset=numbers.npy") == "subset-invalid"


def test_a_subset_smaller_than_a_batch_is_refused_before_training(pico_pool, capsys):
    command = ["run", "scale=pico", f"pool_dir={pico_pool}", "exp_dir=tiny", "filters.clip_score.fraction=0.01"]
    assert refused(capsys, *command) == "subset-too-small"


def test_evaluation_before_training_is_refused(pico_pool, capsys):
    common = ["scale=pico", f"pool_dir={pico_pool}", "exp_dir=exp"]
    assert refused(capsys, "train", *common) == "subset-not-found"
    assert main(["filter", *common]) == 0
    assert refused(capsys, "evaluate", *common, "seeds=3") == "checkpoint-not-found"


def test_missing_evaluation_data_is_listed(finished_run, pico_pool, folder, capsys):
    common = ["scale=pico", f"pool_dir={pico_pool}", f"exp_dir={finished_run}", f"eval_dir={folder}"]
    message = failing(capsys, "evaluate", *common, "seeds=0", "tasks=pico/shapes")
    assert "wds_pico-shapes_test" in message


def test_interrupting_says_how_to_go_on(pico_pool, folder):
    command = [sys.executable, "-m", "benchmark", "run", "scale=pico", f"pool_dir={pico_pool}", "exp_dir=exp"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "PYTHONUNBUFFERED": "1"}
    # Whoever runs the tests in the background of a shell has SIGINT ignored, and that is inherited.
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, handler)
    deadline = time.monotonic() + 600
    while not (folder / "exp" / "seed-0").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "interrupted" in err and f"winnow run scale=pico pool_dir={pico_pool} exp_dir=exp" in err
    assert "Traceback" not in err
    assert not list((folder / "exp").rglob("*.tmp"))
    assert main(command[3:]) == 0


def test_a_signal_is_listed_apart_and_cannot_be_chosen(pico_pool, capsys):
    assert main(["list", "filters"]) == 0
    filters, signals = capsys.readouterr().out.split("\n\nSignals. Filters use them")
    assert "\n  language (signal): " in signals and "(signal)" not in filters and "\n  clip_score (filter)" in filters
    assert "      language_model: file (default: lid.176.ftz in" in signals
    assert main(["filter", "--help"]) == 0
    assert "(signal)" not in capsys.readouterr().out
    for given in (["filters=[language]"], ["filters=basic", "filters.language.language_model=x"]):
        assert main(["filter", "scale=pico", f"pool_dir={pico_pool}", *given]) == EXIT_USER
        told = capsys.readouterr().err
        assert told.startswith("winnow: 'language' is a signal, a value for filters to use: ") and told.count("\n") == 1


def test_help_and_lists(capsys):
    for arguments in ([], ["--help"], ["run", "--help"], ["list", "filters"], ["list", "tasks"], ["list", "scales"]):
        assert main(arguments) == 0
    out = capsys.readouterr().out
    for words in (
        "winnow run",
        "filters.clip_score.fraction, .threshold: number (declared cut: fraction=0.3)",
        "DataComp",
    ):
        assert words in out
    assert "planted_clean (filter, oracle: cannot be submitted)" in out
    assert re.search(r"seeds +training seeds, such as 0 or \[0,1,2\]; each has a folder of its own \(default: 0\)", out)


def test_released_checkpoints_are_listed(capsys):
    assert main(["list", "checkpoints"]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.split() == ["checkpoint", "scale", "pool", "strategy", "average"]
    rows = [line.split() for line in lines[: lines.index("")]]
    assert len(rows) == 28 and all(len(row) == 5 for row in rows)
    assert ["ViT-B-32/datacomp_m_s128m_b4k", "medium", "medium", "image_based+clip_score", ".328"] in rows
    assert ["ViT-B-16/datacomp_xl_s13b_b90k", "-", "xlarge", "image_based+clip_score", ".615"] in rows
    assert max(map(len, [title, *lines])) <= 100


def test_scores_of_ones_own_suite_are_compared_with_its_file(tmp_path, capsys):
    (tmp_path / "own.py").write_text(
        "from benchmark.registry import register_suite, register_task\n"
        "from benchmark.evaluation.tasks import Suite, ZeroShotClassification\n"
        'register_task(ZeroShotClassification(name="own/task", title="Own", groups=("own",), size=40))\n'
        'register_suite(Suite(name="own", version=1, tasks=("own/task",)))\n'
    )
    scores = tmp_path / "scores.jsonl"
    scores.write_text('{"key": "own/task", "dataset": "Own", "metrics": {"acc1": 0.5, "main_metric": 0.5}}\n')
    compare = ["leaderboard", "compare", str(scores)]
    plugins = ["--plugins", str(tmp_path / "own.py")]
    try:
        assert main(compare) == EXIT_USER
        assert "--plugins FILE" in capsys.readouterr().err
        assert main([*compare, *plugins]) == 0
        assert capsys.readouterr().out.startswith("scores: suite own, version 1\n")
        assert main(["list", "tasks", *plugins]) == 0
        assert "suite own (version 1): 1 task\n" in capsys.readouterr().out
    finally:
        SUITES.pop("own", None)
        TASKS.pop("own/task", None)


def test_seeds_that_saw_different_data_are_not_joined(finished_run, pico_pool, tmp_path, capsys):
    shutil.copytree(finished_run, "copy")
    path = Path("copy/seed-1/checkpoint/checkpoint.json")
    record = json.loads(path.read_text())
    record["made_from"]["pool"]["content_hash"] = "0" * 64
    path.write_text(json.dumps(record))
    common = ["scale=pico", f"pool_dir={pico_pool}", "exp_dir=copy"]
    assert refused(capsys, "evaluate", *common, "seeds=0") == "seeds-differ"


def test_a_seed_without_checkpoint_is_met_before_another_is_evaluated(finished_run, pico_pool, capsys):
    shutil.copytree(finished_run, "copy")
    shutil.rmtree("copy/seed-0/eval")
    common = ["scale=pico", f"pool_dir={pico_pool}", "exp_dir=copy"]
    assert refused(capsys, "evaluate", *common, "seeds=[0,7]", "tasks=[pico/shapes]") == "checkpoint-not-found"
    assert not Path("copy/seed-0/eval").exists()


def test_an_experiment_is_found_with_its_own_scale_and_pool(pico_pool, capsys):
    """Neither is given again: its log has the command that chose its subset."""
    assert main(["filter", "scale=pico", f"pool_dir={pico_pool}", "exp_dir=mine"]) == 0
    assert main(["train", "exp_dir=mine"]) == 0
    record = json.loads(Path("mine/seed-0/checkpoint/checkpoint.json").read_text())
    assert record["made_from"]["recipe"]["scale"] == "pico"
    assert main(["evaluate", "exp_dir=mine", "tasks=pico/digits"]) == 0
    assert main(["reshard", "exp_dir=mine", "out_dir=cut"]) == 0
    for log in Path("mine/logs").glob("*.yaml"):
        log.unlink()
    assert refused(capsys, "report", "exp_dir=mine") == "pool-not-found"


def test_a_kept_checkpoint_may_go_once_it_is_evaluated(finished_run, pico_pool, capsys):
    shutil.copytree(finished_run, "copy")
    folder = Path("copy/seed-0/checkpoint")
    record = json.loads((folder / "checkpoint.json").read_text())
    record["result"]["kept"] = {"5": record["result"]["weights"]}
    (folder / "checkpoint.json").write_text(json.dumps(record))
    kept = folder / "model-step-00000005.safetensors"
    shutil.copy(folder / "model.safetensors", kept)
    curve = ["evaluate", "scale=pico", f"pool_dir={pico_pool}", "exp_dir=copy", "curve=true"]
    assert main([*curve, "tasks=[pico/shapes]"]) == 0
    at_step = Path("copy/seed-0/curve/step-000000005/eval/pico-shapes.parquet")
    assert at_step.read_bytes() == (finished_run / "seed-0" / "eval" / "pico-shapes.parquet").read_bytes()
    kept.unlink()
    assert main([*curve, "tasks=[pico/shapes]"]) == 0
    assert f"{kept} is gone" in failing(capsys, *curve, "tasks=[pico/letters]")


def test_an_experiment_is_evaluated_at_the_scale_that_it_was_trained_by(finished_run, pico_pool, folder, capsys):
    shutil.copytree(finished_run, "copy")
    assert main(["evaluate", f"pool_dir={pico_pool}", "exp_dir=copy", "seeds=0"]) == 0
    assert "evaluate: up to date, skipping 16 of 16 tasks" in capsys.readouterr().out
    assert refused(capsys, "evaluate", "exp_dir=nothere") == "subset-not-found"


def test_missing_evaluation_data_is_met_before_training(pico_pool, folder, capsys):
    (folder / "empty").mkdir()
    common = ["run", "scale=pico", f"pool_dir={pico_pool}", "exp_dir=exp", "eval_dir=empty"]
    assert refused(capsys, *common) == "eval-set-missing"
    assert not (folder / "exp" / "seed-0").exists()


def test_what_was_lost_is_made_anew_and_what_was_changed_is_refused(finished_run, pico_pool, capsys):
    shutil.copytree(finished_run, "copy")
    common = ["scale=pico", f"pool_dir={pico_pool}", "exp_dir=copy"]
    lost = ["subset.npy", "seed-0/checkpoint/model.safetensors", "seed-0/eval/pico-shapes.parquet"]
    for name in lost:
        (Path("copy") / name).unlink()
    assert refused(capsys, "evaluate", *common) == "output-lost"
    assert main(["run", *common]) == 0
    for name in lost:
        assert (Path("copy") / name).read_bytes() == (finished_run / name).read_bytes(), name
    np.save("copy/subset.npy", np.load("copy/subset.npy")[:-1])
    assert refused(capsys, "train", *common, "seeds=5") == "file-changed"
    weights = Path("copy/seed-1/checkpoint/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    assert refused(capsys, "evaluate", *common, "seeds=1") == "file-changed"


def test_scores_are_never_credited_to_another_subset(finished_run, pico_pool, capsys):
    """The record is deleted, as the refusal suggests, and another filter run in the same folder."""
    shutil.copytree(finished_run, "swap")
    Path("swap/subset.json").unlink()
    common = ["scale=pico", f"pool_dir={pico_pool}", "exp_dir=swap"]
    assert refused(capsys, "filter", *common, "filters=random") == "record-differs"
    assert refused(capsys, "evaluate", *common) == "subset-not-found"
    assert main(["run", *common]) == 0


def test_results_of_other_weights_are_not_joined(finished_run, pico_pool, capsys):
    shutil.copytree(finished_run, "mixed")
    shutil.rmtree("mixed/seed-0/eval")
    shutil.copytree("mixed/seed-1/eval", "mixed/seed-0/eval")
    common = ["scale=pico", f"pool_dir={pico_pool}", "exp_dir=mixed"]
    assert refused(capsys, "evaluate", *common, "seeds=1") == "record-differs"


def test_a_changed_prediction_or_subset_is_refused(finished_run, pico_pool, capsys):
    shutil.copytree(finished_run, "copy")
    common = ["scale=pico", f"pool_dir={pico_pool}", "exp_dir=copy"]
    with Path("copy/seed-0/eval/pico-shapes.parquet").open("ab") as file:
        file.write(b"x")
    assert refused(capsys, "evaluate", *common) == "file-changed"
    with Path("copy/subset.npy").open("ab") as file:
        file.write(b"x")
    assert "subset.npy was changed after it was made" in failing(capsys, "run", *common)


MARKED = {"clean": True, "taken": True, "inside": True, "honest": False}


def test_a_subset_of_a_reference_stays_a_reference(pico_pool):
    common = ["filter", "scale=pico", f"pool_dir={pico_pool}"]
    assert main([*common, "exp_dir=clean", "filters=planted_clean"]) == 0
    assert main([*common, "exp_dir=taken", "subset=clean/subset.npy"]) == 0
    assert main([*common, "exp_dir=inside", "within=clean/subset.npy", "filters=random"]) == 0
    assert main([*common, "exp_dir=honest", "filters=random"]) == 0
    marks = {name: json.loads(Path(name, "subset.json").read_text())["result"]["reference"] for name in MARKED}
    assert marks == MARKED


def test_a_pool_that_lost_a_file_is_refused(pico_pool, capsys):
    shutil.copytree(pico_pool, "lossy")
    Path("lossy/shards/00000001.tar").unlink()
    message = failing(capsys, "run", "scale=pico", "pool_dir=lossy")
    assert "lossy was changed after it was generated: shards/00000001.tar is gone" in message


def test_a_failed_filter_leaves_no_folder_and_a_failing_plugin_no_traceback(pico_pool, tmp_path, capsys):
    plugin = tmp_path / "my_filter.py"
    plugin.write_text(PLUGIN.replace(".astype(float)", ".no_such_method()"))
    command = ["filter", "-m", "scale=pico", f"pool_dir={pico_pool}", f"plugins={plugin}"]
    assert main([*command, "filters=c_long_captions,no_filter"]) == EXIT_SWEEP
    assert "1 of 2 jobs succeeded" in capsys.readouterr().out
    assert [path.name.split("-")[0] for path in Path("experiments/pico").iterdir()] == ["no_filter"]
    exits = tmp_path / "exits.py"
    exits.write_text("import sys; sys.exit(0)")
    assert "cannot be loaded: SystemExit" in failing(capsys, "filter", f"plugins={exits}")


def test_an_unknown_filter_is_told_how_one_of_ones_own_is_found(capsys):
    assert main(["filter", "scale=pico", "filters=my_rule"]) == 2
    told = capsys.readouterr().err
    assert "[unknown-filter]" in told and "plugins=" in told and "@register_filter" in told


def test_no_filter_is_not_a_filter_without_a_name(capsys):
    for given in ("filters=", "filters=[]"):
        assert main(["filter", "scale=pico", given]) == 2
        assert "[option-missing]" in capsys.readouterr().err
