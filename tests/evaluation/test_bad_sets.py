"""Evaluation sets that cannot be read, or that lie under other names: the others are evaluated, and all is named."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_model

from benchmark.cli.main import main
from benchmark.evaluation.kinds.association import read_instances
from benchmark.evaluation.tasks import ZeroShotClassification
from benchmark.models.build import build_model
from benchmark.pool.tars import write_tar
from benchmark.registry import TASKS, load_tasks, tasks_named
from benchmark.runtime.failures import EXIT_USER
from benchmark.toolbox.hub_rows import local_set
from tests.cli.test_cli import ending, failing
from tests.conftest import user_error
from tests.datacomp_sets import write_datacomp_sets

ROOT = Path(__file__).resolve().parents[2]
MODEL = "pico_cnn"
NAMES = ["mnist", "cifar10", "gtsrb", "stl10", "cars", "misc/winogavil", "fairness/geode", "fairness/utkface"]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Whole sets of NAMES, and the weights of an untrained model."""
    load_tasks()
    folder = tmp_path_factory.mktemp("source")
    write_datacomp_sets(folder / "sets", tasks_named(NAMES, "datacomp"))
    save_model(build_model(MODEL, seed=3), str(folder / "model.safetensors"))
    return folder


@pytest.fixture
def place(source, tmp_path) -> Path:
    shutil.copytree(source / "sets", tmp_path / "sets")
    return tmp_path


def command(source: Path, place: Path, *options: str, tasks: list[str] = NAMES, strict: bool = False) -> list[str]:
    return [
        "evaluate",
        f"model={MODEL}",
        f"checkpoint={source / 'model.safetensors'}",
        f"eval_dir={place / 'sets'}",
        f"out_dir={place / 'out'}",
        f"tasks=[{','.join(tasks)}]",
        f"strict={str(strict).lower()}",
        *options,
    ]


def done(place: Path) -> set[str]:
    path = place / "out" / "eval_results.jsonl"
    return {json.loads(line)["key"] for line in path.read_text().splitlines()} if path.exists() else set()


def cut_tar(folder: Path) -> None:
    tar = folder / "test" / "0.tar"
    tar.write_bytes(tar.read_bytes()[:700])


def no_picture(folder: Path) -> None:
    write_tar(folder / "test" / "0.tar", [("s0.png", b"no picture"), ("s0.cls", b"1")])


def no_number_of_tars(folder: Path) -> None:
    (folder / "test" / "nshards.txt").write_bytes(b"\xff one")


def no_utf8(folder: Path) -> None:
    (folder / "classnames.txt").write_bytes("grün\n".encode("latin-1"))


def no_label(folder: Path) -> None:
    members = [(f"s{each}.webp", b"") for each in range(2)]
    write_tar(folder / "test" / "0.tar", members)


def no_templates(folder: Path) -> None:
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {}\n")


DAMAGES = {
    "mnist": (cut_tar, "mnist_test/test/0.tar is damaged"),
    "cifar10": (no_picture, "image 's0.png' cannot be decoded"),
    "gtsrb": (no_number_of_tars, "instead of the number of tars"),
    "stl10": (no_utf8, "classnames.txt is not UTF-8"),
    "cars": (no_label, "sample 's0' has no .cls"),
    "fairness/geode": (no_templates, "has no {c}"),
    "fairness/utkface": (no_templates, "has no {c}"),
}


@pytest.mark.parametrize("workers", [0, 1])
def test_sets_that_cannot_be_read_keep_no_other_from_being_evaluated(source, place, capsys, workers):
    for name, (damage, _) in DAMAGES.items():
        damage(place / "sets" / TASKS[name].folder_name)
    told, code = ending(capsys, *command(source, place, f"workers={workers}"))
    assert told.startswith("7 of 8 evaluation sets cannot be read: 'mnist': ") and code == "eval-set-invalid"
    for name, (_, reason) in DAMAGES.items():
        assert f"'{name}': " in told and reason in told, name
    assert "Traceback" not in told
    assert done(place) == {"misc/winogavil"}


def test_rows_of_the_hub_that_cannot_be_read_keep_no_other_from_being_evaluated(source, place, capsys):
    (rows,) = place.glob("sets/hf_cache/nlphuji___winogavil/*/*.parquet")
    rows.write_bytes(rows.read_bytes()[:-9])
    told = failing(capsys, *command(source, place))
    assert told.startswith("1 of 8 evaluation sets cannot be read: 'misc/winogavil': ") and "is damaged" in told
    assert done(place) == set(NAMES) - {"misc/winogavil"}


def test_the_scores_of_the_others_are_shown_and_after_mending_it_goes_on(source, place, capsys):
    cut_tar(place / "sets" / "wds_mnist_test")
    assert main(command(source, place)) == EXIT_USER
    captured = capsys.readouterr()
    assert "CIFAR-10" in captured.out and "WinoGAViL" in captured.out
    assert "averages over them are left out" in captured.out
    (warning,) = [line for line in captured.err.splitlines() if line.endswith("The others are evaluated")]
    assert warning.startswith("warning: 1 of 8 evaluation sets cannot be read: 'mnist': ")
    before = {path.name: path.read_bytes() for path in (place / "out" / "eval").glob("*.parquet")}
    assert done(place) == set(NAMES) - {"mnist"} and len(before) == 7
    shutil.copytree(source / "sets" / "wds_mnist_test", place / "sets" / "wds_mnist_test", dirs_exist_ok=True)
    assert main(command(source, place)) == 0
    assert "skipping 7 of 8 tasks" in capsys.readouterr().out
    assert done(place) == set(NAMES)
    assert all((place / "out" / "eval" / name).read_bytes() == data for name, data in before.items())


def test_a_set_of_another_size_keeps_no_other_from_being_evaluated(source, place, capsys, monkeypatch):
    for name in NAMES:
        monkeypatch.setitem(TASKS, name, replace(TASKS[name], size=8_041 if name == "cars" else None))
    told, code = ending(capsys, *command(source, place, strict=True))
    assert "'cars' has 5 images instead of 8,041" in told
    assert code == "eval-set-size"
    assert done(place) == set(NAMES) - {"cars"}


def test_on_ranks_one_says_which_sets_are_bad_and_all_end(source, place):
    cut_tar(place / "sets" / "wds_mnist_test")
    no_picture(place / "sets" / "wds_cifar10_test")
    torchrun = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc-per-node", "2", "--no-python"]
    winnow = [sys.executable, "-m", "benchmark", *command(source, place)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.run([*torchrun, *winnow], env=environment, capture_output=True, text=True, timeout=600)
    assert process.returncode != 0
    lines = [line for line in process.stderr.splitlines() if "2 of 8 evaluation sets cannot be read" in line]
    assert len([line for line in lines if line.startswith("winnow: ")]) == 1
    assert done(place) == set(NAMES) - {"mnist", "cifar10"}


def test_an_experiment_is_scored_on_what_can_be_read_and_has_no_entry_before_all_is(pico_pool, tmp_path, capsys):
    shutil.copytree(pico_pool / "eval", tmp_path / "sets")
    damaged = tmp_path / "sets" / "wds_pico-digits_test"
    options = ["scale=pico", f"pool_dir={pico_pool}", f"exp_dir={tmp_path / 'exp'}", f"eval_dir={tmp_path / 'sets'}"]
    cut_tar(damaged)
    # Before training, which takes hours elsewhere, nothing is begun.
    assert "'pico/digits'" in failing(capsys, "run", *options, "filters=no_filter", "report=false")
    assert not (tmp_path / "exp").exists()
    assert main(["filter", *options[:3], "filters=no_filter"]) == 0
    assert main(["train", *options[:3], "seeds=[0,1]"]) == 0
    told = failing(capsys, "evaluate", *options, "seeds=[0,1]")
    assert told.startswith("1 of 16 evaluation sets cannot be read: 'pico/digits': ") and told.count("digits") == 2
    assert all(len(list((tmp_path / "exp" / f"seed-{seed}" / "eval").glob("*.json"))) == 15 for seed in (0, 1))
    assert not (tmp_path / "exp" / "entry.json").exists()
    shutil.copytree(pico_pool / "eval" / damaged.name, damaged, dirs_exist_ok=True)
    assert main(["evaluate", *options, "seeds=[0,1]"]) == 0
    entry = json.loads((tmp_path / "exp" / "entry.json").read_text())
    assert list(entry["seeds"]) == ["0", "1"] and len(entry["seeds"]["0"]) == 16


def test_a_picture_that_is_met_after_training_ends_the_run_with_scores_and_a_report(pico_pool, tmp_path, capsys):
    shutil.copytree(pico_pool / "eval", tmp_path / "sets")
    no_picture(tmp_path / "sets" / "wds_pico-digits_test")
    options = ["scale=pico", f"pool_dir={pico_pool}", f"exp_dir={tmp_path / 'exp'}", f"eval_dir={tmp_path / 'sets'}"]
    told = failing(capsys, "run", *options, "filters=no_filter")
    assert "'pico/digits': " in told and "cannot be decoded" in told
    assert len(list((tmp_path / "exp" / "seed-0" / "eval").glob("*.json"))) == 15
    assert (tmp_path / "exp" / "report" / "index.html").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [(b"", "empty"), (b"\xff", "UTF-8"), (b"{}", "line 1")],
)
def test_questions_that_cannot_be_read_are_called_that(tmp_path, text, told):
    path = tmp_path / "instances.jsonl"
    path.write_bytes(text)
    with user_error("eval-set-invalid", match=told) as caught:
        read_instances(path, set())
    assert caught.value.code == "eval-set-invalid"


# Names of folders


def test_a_set_under_the_short_name_of_the_hubs_clip_benchmark_is_taken(source, place):
    for name in ("mnist", "cars"):
        folder = place / "sets" / TASKS[name].folder_name
        folder.rename(folder.with_name(folder.name.removesuffix("_test")))
    assert main(command(source, place)) == 0
    assert done(place) == set(NAMES)


def test_of_two_folders_of_one_task_it_is_said_which_is_taken(source, place, capsys):
    shutil.copytree(place / "sets" / "wds_mnist_test", place / "sets" / "wds_mnist")
    assert main(command(source, place, tasks=["mnist"])) == 0
    assert "has wds_mnist_test and wds_mnist; 'mnist' is evaluated on wds_mnist_test" in capsys.readouterr().err


def test_a_name_that_ends_in_test_does_not_take_the_set_of_the_name_without(source, place):
    task = ZeroShotClassification(name="mnist_test", title="Another")
    assert local_set(task, place / "sets") == place / "sets" / "wds_mnist_test_test"


def test_sets_that_no_task_is_called_by_are_named(source, place, capsys):
    (place / "sets" / "wds_cifar10_test").rename(place / "sets" / "wds_vtab-cifar10")
    told = failing(capsys, *command(source, place))
    assert "evaluation data of 1 of 8 tasks is missing" in told
    assert "wds_vtab-cifar10;" in told
    assert not (place / "out").exists()


def test_decontamination_sees_sets_under_short_names(source, place):
    from benchmark.toolbox.decontamination import evaluation_tars

    for name in ("mnist", "misc/winogavil"):
        folder = local_set(TASKS[name], place / "sets")
        copy = shutil.copytree(folder, place / name.replace("/", "-"))
        shutil.rmtree(place / "sets" / TASKS[name].folder_name, ignore_errors=True)
        copy.rename(place / "sets" / TASKS[name].folder_names[1])
    names = set(evaluation_tars(place / "sets"))
    assert {"wds_mnist/test/0.tar", "wds_misc-winogavil/test/0.tar"} <= names
    assert "wds_misc-winogavil_test/test/0.tar" not in names
