"""What `winnow run` hands to its stages, and which scores it shows at the end."""

import json
import shutil

import pytest

from benchmark.cli import scores
from benchmark.cli.main import main
from benchmark.pool.pool import Pool
from benchmark.registry import SUITES, load_tasks
from benchmark.runtime.errors import UserError
from benchmark.scales import SCALES
from tests.cli.test_cli import failing
from tests.conftest import uid, write_pool

PLUGIN = '''"""A task of somebody's own."""
from benchmark import register_task
from benchmark.evaluation.tasks import ZeroShotClassification

register_task(ZeroShotClassification(name="phd", title="My thesis"))
'''


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, strategies):
    monkeypatch.chdir(tmp_path)


def stopped(monkeypatch, place):
    """Put a function in a stage's place that ends the command; return what it is called with."""
    calls = []

    def stage(*arguments, **options):
        calls.append((arguments, options))
        raise UserError("stopped here")

    monkeypatch.setattr(f"benchmark.cli.{place}", stage)
    return calls


@pytest.mark.parametrize(
    ("verb", "options", "device"),
    [
        ("run", ["scale=small"], "cuda"),
        ("run", ["scale=small", "device=cpu"], "cpu"),
        ("run", ["scale=pico"], "cpu"),
        ("run", ["scale=pico", "device=cuda"], "cuda"),
        ("filter", ["scale=small"], "cpu"),
        ("filter", ["scale=small", "device=cuda"], "cuda"),
    ],
)
def test_models_of_filters_run_where_training_does(pico_pool, monkeypatch, capsys, verb, options, device):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    calls = stopped(monkeypatch, "choices.filter_stage")
    more = ["tasks=pico/digits"] if verb == "run" else []
    told = failing(capsys, verb, f"pool_dir={pico_pool}", "filters=clip_similarity", *options, *more)
    assert told == "stopped here"
    ((_, _, choice, _), _) = calls[0]
    assert choice.device == device


@pytest.mark.parametrize(("given", "expected"), [("workers=3", 3), ("workers=0", 0), ("report=false", None)])
def test_workers_reach_the_evaluation(pico_pool, monkeypatch, capsys, given, expected):
    monkeypatch.setattr("benchmark.cli.commands.run.train_stage", lambda *_, **__: None)
    monkeypatch.setattr("benchmark.cli.commands.run.choose", lambda *_: None)
    calls = stopped(monkeypatch, "commands.run.evaluate_stage")
    options = ["scale=pico", f"pool_dir={pico_pool}", "filters=no_filter", "tasks=pico/digits", given]
    assert failing(capsys, "run", *options) == "stopped here"
    assert calls[0][0][-1].workers == expected


def test_scores_of_tasks_of_ones_own_are_shown_beside_those_of_the_suite(pico_pool, tmp_path, capsys, own_registry):
    (tmp_path / "phd.py").write_text(PLUGIN)
    shutil.copytree(pico_pool / "eval", tmp_path / "sets")
    shutil.copytree(tmp_path / "sets" / "wds_pico-digits_test", tmp_path / "sets" / "wds_phd_test")
    options = ["scale=pico", f"pool_dir={pico_pool}", "exp_dir=exp", "eval_dir=sets", "plugins=phd.py"]
    assert main(["run", *options, "filters=no_filter", "tasks=phd", "report=false"]) == 0
    shown = capsys.readouterr().out
    lines = (tmp_path / "exp" / "seed-0" / "eval_results.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["phd"]
    value = f"{json.loads(lines[0])['metrics']['main_metric']:.3f}".lstrip("0")
    assert any(line.startswith("My thesis ") and value in line for line in shown.splitlines())
    assert "no score of any task of suite" not in shown
    assert "no entry: no seed of exp has results for the whole suite 'pico'" in shown
    # Beside the whole suite, and where a task of it is asked for, both are shown.
    for tasks, among in (("[phd,pico/digits]", "suite pico, version"), ("[phd,pico]", "suite pico, version")):
        assert main(["evaluate", *options, f"tasks={tasks}"]) == 0
        shown = capsys.readouterr().out
        assert among in shown or "no_filter" in shown
        assert any(line.startswith("My thesis ") and value in line for line in shown.splitlines())
    assert "files: exp (scores: entry.json" in shown


def test_tasks_of_another_suite_are_shown_by_that_suite(strategies):
    tasks = load_tasks()
    names = ["mnist", "cars"]
    assert scores.shown_suites([tasks[name] for name in names], "pico") == [SUITES["datacomp"]]
    mixed = [*names, "pico/digits"]
    assert scores.shown_suites([tasks[name] for name in mixed], "pico") == [SUITES["pico"], SUITES["datacomp"]]
    assert scores.shown_suites([tasks["pico/digits"]], "pico") == [SUITES["pico"]]
    (own,) = scores.shown_suites([tasks["mnist"], tasks["nano/digits"]], "pico")
    assert own.tasks == ("mnist", "nano/digits") and own.name == scores.OWN_CHOICE


def test_a_run_on_ones_own_pool_is_not_shown_as_one_on_the_embedded_pool(pico_pool, tmp_path, capsys, monkeypatch):
    """The board's title names the embedded pool."""
    own = Pool(write_pool(tmp_path / "own", {"uid": [uid(1)]}))
    monkeypatch.setattr(scores, "board_table", lambda *_: "the board")
    monkeypatch.setattr(scores, "write_experiment_entry", lambda *_: object())
    for pool, is_own in ((Pool(pico_pool), False), (own, True)):
        scores.report_experiment(tmp_path, SCALES["pico"], pool)
        before = capsys.readouterr().out.split("the board\n")[0]
        assert (str(pool.dir) in before) == is_own
