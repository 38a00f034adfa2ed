"""Every command of the README runs, in its order, in one empty folder; the embedded scale is `pico` instead of `nano`.

The installation and the first `winnow run` at full scale run in `.ci/run`, word for word; those that need Slurm run
in `test_slurm.py`, on a fake cluster, downloads in `test_download_pool.py`, from servers on this machine.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import ray
import torch

from benchmark.cli.main import main
from benchmark.models.build import build_model
from benchmark.registry import STRATEGIES, SUITES, TASKS, load_tasks, tasks_named
from benchmark.scales import SCALES, get_scale
from tests.datacomp_sets import write_datacomp_sets

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
TEST = "pytest -n auto --dist loadfile"
INSTALLING = {
    "python3 -m venv .venv && source .venv/bin/activate",
    "pip install -e '.[test]' && pip install --no-deps 'clip_benchmark>=1.6.2'",
    TEST,
}
IN_TEST = ("slurm", "ray", "s3", "hf", "cld3")  # extras that are part of the extra `test`
EXTRAS = {f"pip install -e '.[{name}]'" for name in IN_TEST}
FIRST = "pip install -e . && winnow run"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def commands():
    lines = [line for block in blocks("bash") for line in block.strip().splitlines()]
    return [line for line in lines if line not in {*INSTALLING, FIRST, *EXTRAS} and not runs_elsewhere(line)]


def runs_elsewhere(command):
    """Tell whether a command is run by the tests of Slurm, downloads or assets, on what stands in for the real ones."""
    begins = ("scripts/slurm/", "python scripts/download_", "python scripts/make_centroids.py")
    return command.startswith(begins) or "submitit_slurm" in command or "lid.176.bin" in command


def at_pico(command):
    """Return the arguments of a `winnow` command, at the scale of the tests."""
    program, verb, *rest = shlex.split(command.replace("nano", "pico").replace("model=ViT-B-32 ", "model=pico_cnn "))
    assert program == "winnow"
    if "checkpoint=epoch_5.pt" in rest:
        return [verb, *rest, "strict=false"]  # small sets
    if rest[:1] == ["compare"]:
        return [verb, *rest]
    if verb in ("run", "filter", "reshard", "train", "evaluate", "report"):
        return [verb, *rest, "scale=pico"]
    return [verb, *rest, "--board", "pico"] if verb == "leaderboard" else [verb, *rest]


def on_ranks(command):
    """Run a command of torchrun's with this Python; return its exit code."""
    launcher, program = command.removeprefix("torchrun ").split("--no-python ")
    ours = ["--no-python", sys.executable, "-m", "benchmark", *at_pico(program)]
    started = [sys.executable, "-m", "torch.distributed.run", "--standalone", *shlex.split(launcher), *ours]
    return subprocess.run(started, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=600).returncode


def test_the_readme_installs_as_ci_does():
    lines = [line for block in blocks("bash") for line in block.strip().splitlines()]
    assert set(lines) >= {*INSTALLING, FIRST}
    ci = (ROOT / ".ci" / "run").read_text()
    parts = ("-e .\n", "-e '.[test]'", "--no-deps 'clip_benchmark>=1.6.2'")
    for part in (*(f"pip install --quiet {part}" for part in parts), "\n  winnow run\n", f"\n{TEST}\n"):
        assert part in ci


def test_the_extras_are_part_of_the_one_for_tests():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in IN_TEST:
        assert set(extras[name]) <= set(extras["test"])
        assert f"pip install -e '.[{name}]'" in README


def test_the_table_is_the_boards(capsys):
    assert main(["leaderboard", "table"]) == 0
    assert blocks("text")[0].strip() == capsys.readouterr().out.strip()


def test_the_filter_is_short_and_complete():
    code = blocks("python")[0]
    assert len(code.strip().splitlines()) < 20
    assert "from benchmark import register_filter" in code


def test_every_command_runs_in_order(tmp_path, monkeypatch, strategies, pico_pool):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_filter.py").write_text(blocks("python")[0])
    (tmp_path / "my_signals.py").write_text(blocks("python")[1])
    (tmp_path / "pools").mkdir()
    shutil.copytree(pico_pool, tmp_path / "pools" / "pico")
    exec(blocks("python")[2].replace("nano", "pico"), {})
    (tmp_path / "my_tasks.py").write_text(blocks("python")[3])
    load_tasks()
    write_datacomp_sets(tmp_path / "evalsets", tasks_named(["datacomp"], "datacomp"))
    shutil.copytree(tmp_path / "evalsets" / "wds_mnist_test", tmp_path / "my_sets" / "wds_shop-shoes_test")
    weights = {f"module.{name}": tensor for name, tensor in build_model("pico_cnn").state_dict().items()}
    torch.save({"epoch": 5, "state_dict": weights}, tmp_path / "epoch_5.pt")
    before, tasks, suites = dict(STRATEGIES), dict(TASKS), dict(SUITES)
    assert len(commands()) >= 12
    try:
        for command in commands():
            if command.startswith("torchrun "):
                assert on_ranks(command) == 0, command
            else:
                assert main(at_pico(command)) == 0, command
    finally:
        ray.shutdown()  # started by executor=ray
        for registered, of_before in ((STRATEGIES, before), (TASKS, tasks), (SUITES, suites)):
            registered.clear()
            registered.update(of_before)
    folders = sorted(path.name.rsplit("-", 1)[0] for path in (tmp_path / "experiments" / "pico").iterdir())
    assert folders == [
        "basic+near_dedup+no_text+clip_score_by_entry",
        "clip_score",
        "long_captions",
        "long_captions+dedup",
        "my_cut+clip_similarity",
        "no_filter",
        "no_filter",
        "no_filter",
        "random",
        "sharp+decontaminated",
        "text_masked_clip",
    ]


@pytest.mark.parametrize("name", re.findall(r"\]\(((?!http)[^)]+)\)", README))
def test_links_lead_somewhere(name):
    assert (ROOT / name).exists()


def test_the_folders_named_are_there():
    for name in re.findall(r"^\| `(\w+)/` ", README, re.M):
        assert (ROOT / name).is_dir()


def test_the_scale_of_ones_own_is_one(tmp_path):
    (text,) = blocks("yaml")
    (tmp_path / "my_scale.yaml").write_text(text)
    scale = get_scale(str(tmp_path / "my_scale.yaml"))
    assert (scale.base, scale.samples_seen, scale.steps) == ("small", 1_280_000, 1250)


def test_the_recipes_in_the_docs_are_the_recipes():
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", (ROOT / "docs" / "training.md").read_text(), re.M)
    halves = {"fp32": "fp32", "amp": "fp16", "amp_bf16": "bf16"}
    for name, cells in rows[: len(SCALES)]:
        scale = SCALES[name]
        model, seen, batch, steps, rate, precision, _ = cells.split(" | ")
        assert model.strip("`") == scale.model and precision == halves[scale.precision]
        assert [int(number.replace(",", "")) for number in (seen, batch, steps)] == [
            scale.samples_seen,
            scale.batch_size,
            scale.steps,
        ]
        assert float(rate) == scale.learning_rate
    assert {name for name, _ in rows[: len(SCALES)]} == set(SCALES)
