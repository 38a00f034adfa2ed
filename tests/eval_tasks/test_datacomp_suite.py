"""The whole suite of DataComp on small sets of every kind, by `winnow evaluate`, and suites from outside."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_model

from benchmark.cli.main import main
from benchmark.evaluation.tasks import Suite
from benchmark.models.build import build_model
from benchmark.pool.tars import write_tar
from benchmark.registry import SUITES, TASKS, load_tasks, register_suite, tasks_named
from benchmark.runtime.files import read_json
from benchmark.toolbox.decontamination import evaluation_tars
from tests.cli.test_cli import ending, failing
from tests.conftest import user_error
from tests.datacomp_sets import write_datacomp_sets

ROOT = Path(__file__).resolve().parents[2]
MODEL = "pico_cnn"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with all sets, the weights of an untrained model, and the results of one evaluation."""
    load_tasks()
    folder = tmp_path_factory.mktemp("datacomp")
    write_datacomp_sets(folder / "sets", tasks_named(["datacomp"], "datacomp"))
    save_model(build_model(MODEL, seed=3), str(folder / "model.safetensors"))
    assert main(command(folder, "whole")) == 0
    return folder


def command(place: Path, out: str, *options: str, strict: bool = False) -> list[str]:
    return [
        "evaluate",
        f"model={MODEL}",
        f"checkpoint={place / 'model.safetensors'}",
        f"eval_dir={place / 'sets'}",
        f"out_dir={place / out}",
        f"strict={str(strict).lower()}",
        *options,
    ]


def lines_of(folder: Path) -> dict[str, dict]:
    lines = [json.loads(line) for line in (folder / "eval_results.jsonl").read_text().splitlines()]
    return {line["key"]: line for line in lines}


def results(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in (folder / "eval").iterdir() if path.suffix in (".json", ".parquet")
    }


def test_every_task_has_a_line_with_datacomps_names(place):
    lines = lines_of(place / "whole")
    suite = SUITES["datacomp"]
    assert set(lines) == {*suite.tasks, *suite.unscored} and len(lines) == 40
    assert all(lines[name]["dataset"] == TASKS[name].title for name in lines)
    for name in suite.tasks:
        metrics = lines[name]["metrics"]
        assert metrics["main_metric"] == metrics[TASKS[name].main_metric], name
        assert 0 <= metrics["chance"] <= 1
    assert {name for name, line in lines.items() if line["metrics"]["main_metric"] is None} == set(suite.unscored)
    assert "acc_worst_named_region" in lines["wilds/fmow"]["metrics"]
    assert {"acc_race_wg", "acc_gender_x_race:0_gender:0", "toxicity_crime_avg"} <= set(
        lines["fairness/fairface"]["metrics"]
    )


def test_sets_of_another_size_are_refused_all_at_once(place, capsys):
    told = failing(capsys, *command(place, "strict", strict=True))
    assert told.startswith("40 of 40 evaluation sets ")
    assert (
        "'imagenet1k' has 5 images instead of 50,000" in told and "'misc/winogavil' has 5 cues instead of 3,563" in told
    )
    assert not list((place / "strict").rglob("*.parquet"))


def test_what_was_made_from_part_of_a_set_says_so_and_is_refused_later(place, capsys):
    record = read_json(place / "whole" / "eval" / "mnist.json")
    assert record["result"]["expected_samples"] == 10_000
    told, code = ending(capsys, *command(place, "whole", strict=True))
    assert code == "record-differs" and "strict=false" in told


def test_a_second_call_evaluates_nothing(place, capsys):
    before = results(place / "whole")
    capsys.readouterr()
    assert main(command(place, "whole")) == 0
    assert "skipping 40 of 40 tasks" in capsys.readouterr().out
    assert results(place / "whole") == before


def test_groups_narrow(place):
    assert main(command(place, "narrow", "tasks=[retrieval,imagenet]")) == 0
    assert set(lines_of(place / "narrow")) == {
        "imagenet1k",
        "misc/winogavil",
        "retrieval/flickr_1k_test_image_text_retrieval",
        "retrieval/mscoco_2014_5k_test_image_text_retrieval",
    }


def test_what_is_missing_is_listed_with_the_way_to_get_it(place, tmp_path, capsys):
    options = command(place, "absent", "tasks=[mnist,misc/winogavil]", strict=True)
    options[3] = f"eval_dir={tmp_path}"
    told = failing(capsys, *options)
    assert "wds_mnist_test" in told and "wds_misc-winogavil_test" in told
    assert f"python scripts/download_evalsets.py --out {tmp_path} --tasks mnist misc/winogavil" in told


def test_two_ranks_share_the_tasks_and_end_with_the_same_bytes(place):
    torchrun = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc-per-node", "2", "--no-python"]
    winnow = [sys.executable, "-m", "benchmark"]
    options = command(place, "ranks", "tasks=[vtab,wilds,fairness]")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*torchrun, *winnow, *options], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, alone = results(place / "ranks"), results(place / "whole")
    assert len(found) == 2 * 20 and found == {name: alone[name] for name in found}
    assert len((place / "ranks" / "costs.jsonl").read_text().splitlines()) == 20


HIDDEN = '''"""A suite of somebody's own."""
from benchmark import register_suite, register_task
from benchmark.evaluation.tasks import Suite, ZeroShotClassification

register_task(ZeroShotClassification(name="hidden/{name}", title="Hidden digits", groups=("own",), size=5))
register_suite(Suite(name="{name}", version=1, tasks=("hidden/{name}",)))
'''


def test_a_hidden_suite_is_a_file_and_a_folder_outside(place, tmp_path, capsys, own_registry):
    plugin = tmp_path / "hidden.py"
    plugin.write_text(HIDDEN.format(name="secret"))
    (tmp_path / "wds_hidden-secret_test").symlink_to(place / "sets" / "wds_mnist_test")
    options = command(place, "hidden", "tasks=secret", f"plugins={plugin}", strict=True)
    options[3] = f"eval_dir={tmp_path}"
    assert main(options) == 0
    assert set(lines_of(place / "hidden")) == {"hidden/secret"}
    assert "Hidden digits" in (place / "hidden" / "eval_results.jsonl").read_text()


def test_a_suite_of_datacomps_tasks_is_listed_beside_datacomps(own_registry, tmp_path, capsys):
    plugin = tmp_path / "few.py"
    plugin.write_text(
        "from benchmark import register_suite\nfrom benchmark.evaluation.tasks import Suite\n"
        'register_suite(Suite(name="few", version=1, tasks=("mnist", "cars"), unscored=("fairness/fairface",)))\n'
    )
    assert main(["list", "tasks", "--plugins", str(plugin)]) == 0
    shown = capsys.readouterr().out
    assert "suite few (version 1): 2 tasks, and 1 without a score\n  mnist " in shown
    assert shown.count("\n  mnist ") == 2 and "in no suite" not in shown


def test_a_suite_of_tasks_that_no_file_registers_is_refused_where_it_is_named(own_registry):
    register_suite(Suite(name="broken", version=1, tasks=("mnst",)))
    assert [task.name for task in tasks_named(["mnist"], "datacomp")] == ["mnist"]
    with user_error("strategy-invalid", match="'broken'.*'mnst'.*'mnist'"):
        tasks_named(["broken"], "datacomp")


def test_a_suite_and_a_group_of_one_name_are_not_mixed(own_registry):
    register_suite(Suite(name="vtab", version=1, tasks=("mnist",)))
    register_suite(Suite(name="cars", version=1, tasks=("mnist", "cars")))
    for name in ("vtab", "cars"):
        with user_error("ambiguous-tasks", match=name) as caught:
            tasks_named([name], "datacomp")
        assert caught.value.code == "ambiguous-tasks"
    assert [task.name for task in tasks_named(["vtab"], "nano")] == ["mnist"]  # nano has no such group
    # A suite that has just the tasks of the group, as the README's, says nothing ambiguous.
    register_suite(Suite(name="imagenet", version=1, tasks=("imagenet1k",)))
    assert [task.name for task in tasks_named(["imagenet"], "datacomp")] == ["imagenet1k"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["checkpoint=x"], "checkpoint= goes with model="),
        ([f"model={MODEL}", "checkpoint=x", "eval_dir=sets"], "there is no file x"),
        ([f"model={MODEL}", "eval_dir=sets"], "checkpoint: must be given"),
        (["model=ViT-B-3", "checkpoint=x", "eval_dir=sets"], "unknown model 'ViT-B-3'. Did you mean 'ViT-B-32'?"),
        (["model=ViT-B-32", "checkpoint=openai", "eval_dir=sets"], "QuickGELU"),
        ([f"model={MODEL}", "checkpoint=x"], "eval_dir must be given"),
        ([f"model={MODEL}", "checkpoint=x", "eval_dir=sets", "exp_dir=y"], "exp_dir= goes with an experiment"),
        ([f"model={MODEL}", "checkpoint=x", "eval_dir=sets", "curve=true"], "curve=true goes with exp_dir="),
        ([f"model={MODEL}", "checkpoint=x", "eval_dir=sets", "tasks=vtabb"], "Did you mean 'vtab'?"),
        (["out_dir=x", "exp_dir=y"], "out_dir= goes with model="),
        (["model=mine.json", "checkpoint=x", "eval_dir=sets"], "there is no model configuration mine.json"),
    ],
)
def test_what_cannot_be_is_one_sentence(options, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert told in failing(capsys, "evaluate", *options)
    assert not list(tmp_path.iterdir())


def test_decontamination_sees_the_sets_that_come_as_rows(place):
    tars = evaluation_tars(place / "sets")
    assert len(tars) == 40
    assert "wds_misc-winogavil_test/test/0.tar" in tars and all(path.is_file() for path in tars.values())


def test_what_is_there_is_named_beside_what_is_missing(place, tmp_path, capsys):
    for name in ("mnist", "cars"):
        (tmp_path / f"wds_{name}_test").symlink_to(place / "sets" / f"wds_{name}_test")
    options = command(place, "part", "tasks=[mnist,cars,gtsrb]")
    options[3] = f"eval_dir={tmp_path}"
    told = failing(capsys, *options)
    assert "evaluation data of 1 of 3 tasks is missing" in told and told.endswith("tasks=[mnist,cars].")


@pytest.mark.parametrize(
    ("eval_dir", "expected"), [("sets/wds_mnist_test", "option-value"), ("nowhere", "eval-set-missing")]
)
def test_a_folder_that_is_none_of_sets_is_called_that(place, eval_dir, expected, capsys, monkeypatch):
    monkeypatch.chdir(place)
    options = command(place, "odd", "tasks=mnist")
    options[3] = f"eval_dir={eval_dir}"
    told, code = ending(capsys, *options)
    assert code == expected and eval_dir in told


@pytest.mark.parametrize(("damage", "told"), [("cut", "is damaged"), ("image", "cannot be decoded")])
def test_damage_says_what_to_do(place, tmp_path, damage, told, capsys):
    source = place / "sets" / "wds_mnist_test"
    shutil.copytree(source, tmp_path / source.name)
    tar = tmp_path / source.name / "test" / "0.tar"
    if damage == "cut":
        tar.write_bytes(tar.read_bytes()[:700])
    else:
        members = [(f"s0.{extension}", data) for extension, data in (("png", b"no picture"), ("cls", b"1"))]
        write_tar(tar, members)
    options = command(place, damage, "tasks=mnist")
    options[3] = f"eval_dir={tmp_path}"
    text = failing(capsys, *options)
    assert told in text and text.endswith("fetch the set again") and "object at" not in text
