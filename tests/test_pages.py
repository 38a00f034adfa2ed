"""Every command on every page runs, page by page in an empty folder; at `pico` instead of `nano`.

The installation and the first `winnow run` at full scale run in `.ci/run`, word for word. What stands in a block marked
*Not run here* has its reason there: those commands are run by other tests, on a fake cluster or on servers of this
machine, or by nobody.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
import torch

from benchmark.cli.main import main
from benchmark.models.build import build_model
from benchmark.registry import tasks_named
from benchmark.scales import SCALES, get_scale
from tests.datacomp_sets import write_datacomp_sets

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [path for path in PAGES if path.parent.name != "generated"]
TEST = "pytest -n auto --dist loadfile"
FIRST = "pip install -e . && winnow run"
INSTALLING = {
    "python3 -m venv .venv && source .venv/bin/activate",
    "pip install -e .",
    "pip install -e . -c constraints/references.txt",
    "pip install -e '.[test]' && pip install --no-deps 'clip_benchmark>=1.6.2'",
    FIRST,
    TEST,
    "ruff check . && ruff format --check . && mypy",
}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# Pages whose programs have tests of their own.
ELSEWHERE = {
    "docs/performance.md": "tests/scripts/test_perf.py runs the measuring programs on small pools",
    "docs/python.md": "tests/api/test_python_page.py runs its code",
    "docs/evaluation.md": "tests/evaluation/test_kinds.py runs the new kind of task",
    "docs/shards.md": "tests/pool/test_pool_import.py runs the code that writes tars",
}
MOST_NOT_RUN = 21  # commands; more of them are a reason to think again


@dataclass(frozen=True)
class Block:
    """A piece of code on a page."""

    language: str
    code: str
    saved_as: str  # the file that the page says to save it as
    not_run: str  # the reason


def blocks_of(path):
    """Return a page's blocks of code, in order."""
    found = []
    text = path.read_text()
    for match in re.finditer(r"^```(\w+)\n(.*?)^```", text, re.M | re.S):
        before = text[: match.start()].rstrip().rpartition("\n\n")[2]
        saved = re.search(r"[Ss]ave this as `(\w+\.py)`:\s*$|file, such as `(\w+\.py)`", before)
        not_run = re.fullmatch(r"\*Not run here: (.*)\*", before, re.S)
        found.append(
            Block(
                match[1],
                match[2],
                next((name for name in saved.groups() if name), "") if saved else "",
                not_run[1] if not_run else "",
            )
        )
    return found


def commands_of(block):
    """Return the commands of a block that are run on its page."""
    installs = {f"pip install -e '.[{name}]'" for name in EXTRAS}
    lines = block.code.strip().replace("\\\n", " ").splitlines()
    return [line for line in lines if line not in INSTALLING | installs and not block.not_run]


def at_pico(command):
    """Return the arguments of a `winnow` command, at the scale of the tests."""
    program, verb, *rest = shlex.split(command.replace("nano", "pico").replace("model=ViT-B-32 ", "model=pico_cnn "))
    assert program == "winnow", command
    rest = [each for word in rest for each in (sorted(map(str, Path().glob(word)))[:1] if "*" in word else [word])]
    if "checkpoint=epoch_5.pt" in rest:
        return [verb, *rest, "strict=false"]  # small sets
    if rest[:1] == ["compare"]:
        return [verb, *rest]
    if verb in ("run", "filter", "reshard", "train", "evaluate", "report") and "--help" not in rest:
        return [verb, *rest, "scale=pico"]
    return [verb, *rest, "--board", "pico"] if verb == "leaderboard" else [verb, *rest]


def on_ranks(command):
    """Run a command of torchrun's with this Python; return its exit code."""
    launcher, program = command.removeprefix("torchrun ").split("--no-python ")
    ours = ["--no-python", sys.executable, "-m", "benchmark", *at_pico(program)]
    started = [sys.executable, "-m", "torch.distributed.run", "--standalone", *shlex.split(launcher), *ours]
    return subprocess.run(started, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=240).returncode


def run(command):
    """Run a command of a page; return its exit code."""
    if command.startswith("torchrun "):
        return on_ranks(command)
    try:
        return main(at_pico(command))
    except SystemExit as error:  # of --help
        return error.code or 0


def has_code(path):
    return any(block.language in ("bash", "python") for block in blocks_of(path)) and name_of(path) not in ELSEWHERE


def name_of(path):
    return path.relative_to(ROOT).as_posix()


@pytest.fixture
def ray_ends():
    """Stop Ray, which executor=ray starts."""
    yield
    ray.shutdown()


@pytest.mark.parametrize("path", [path for path in PAGES if has_code(path)], ids=name_of)
def test_what_a_page_says_runs(path, tmp_path, monkeypatch, strategies, pico_pool, own_registry, ray_ends):
    monkeypatch.chdir(tmp_path)
    blocks = blocks_of(path)
    if any(commands_of(block) for block in blocks):
        shutil.copytree(pico_pool, tmp_path / "pools" / "pico")
    if "eval_dir=evalsets" in path.read_text() and "model=ViT-B-32 checkpoint=epoch_5.pt" in path.read_text():
        write_datacomp_sets(tmp_path / "evalsets", tasks_named(["datacomp"], "datacomp"))
        shutil.copytree(tmp_path / "evalsets" / "wds_mnist_test", tmp_path / "my_sets" / "wds_shop-shoes_test")
        weights = {f"module.{name}": tensor for name, tensor in build_model("pico_cnn").state_dict().items()}
        torch.save({"epoch": 5, "state_dict": weights}, tmp_path / "epoch_5.pt")
    names = {}
    for block in blocks:
        if block.language == "python" and block.saved_as:
            (tmp_path / block.saved_as).write_text(block.code)
        elif block.language == "python" and not block.not_run:
            exec(block.code.replace("nano", "pico"), names)
        elif block.language == "bash":
            for command in commands_of(block):
                assert run(command) == 0, command


def test_pages_whose_code_runs_elsewhere_are_there():
    assert all((ROOT / name).is_file() for name in ELSEWHERE)


def test_commands_that_are_not_run_have_reasons_and_are_few():
    not_run = [
        line
        for path in PAGES
        for block in blocks_of(path)
        if block.language == "bash" and block.not_run and name_of(path) not in ELSEWHERE
        for line in block.code.strip().splitlines()
    ]
    assert 0 < len(not_run) <= MOST_NOT_RUN, not_run


def test_the_readme_installs_as_ci_does():
    lines = [
        line for block in blocks_of(ROOT / "README.md") if block.language == "bash" for line in block.code.splitlines()
    ]
    assert set(lines) >= {
        "python3 -m venv .venv && source .venv/bin/activate",
        FIRST,
        TEST,
        "pip install -e '.[test]' && pip install --no-deps 'clip_benchmark>=1.6.2'",
    }
    ci = (ROOT / ".ci" / "run").read_text()
    parts = ("-e .\n", "-e '.[test]'", "--no-deps 'clip_benchmark>=1.6.2'")
    for part in (*(f"pip install --quiet {part}" for part in parts), "\n  winnow run\n", f"\n{TEST}\n"):
        assert part in ci


def test_the_extras_that_pages_name_are_there():
    for path in PAGES:
        for name in re.findall(r"pip install -e '\.\[(\w+)\]'", path.read_text()):
            assert name in EXTRAS, path


def test_the_readme_is_a_front_door():
    assert len(README.splitlines()) <= 150


def test_the_readmes_table_is_the_boards(capsys):
    assert main(["leaderboard", "table", "--format", "csv"]) == 0
    printed = capsys.readouterr().out
    rows = re.findall(r"^\| ([a-z_0-9.-]+).* \| +\d+ % \| (\.\d{3}) ± (\.\d{3}) \|$", README, re.M)
    assert len(rows) >= 6
    assert main(["leaderboard", "table"]) == 0
    board = capsys.readouterr().out
    for name, average, spread in rows:
        assert re.search(rf"\b{re.escape(name)} .*{re.escape(average)} ± {re.escape(spread)} \(5\)", board), name
    assert printed


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path):
    for name in re.findall(r"\]\(((?!http|#)[^)#\s]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / name).exists(), name


def test_every_page_is_in_the_table_of_contents():
    index = (ROOT / "docs" / "index.md").read_text()
    for path in (ROOT / "docs").rglob("*.md"):
        name = path.relative_to(ROOT / "docs").with_suffix("").as_posix()
        assert name in ("index",) or name.startswith("generated/") or f"\n{name}\n" in index, name


def test_the_folders_named_are_there():
    for name in re.findall(r"^\| `(\w+)/` ", README, re.M):
        assert (ROOT / name).is_dir()


def test_the_custom_scale_is_one(tmp_path):
    (block,) = (each for each in blocks_of(ROOT / "docs/guides/train_at_scale.md") if each.language == "yaml")
    (tmp_path / "my_scale.yaml").write_text(block.code)
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
