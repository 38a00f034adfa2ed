"""What is packaged and declared: the source distribution, extras, types, workflows, versions."""

import json
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
# As an offline `python -m build --sdist --no-isolation` would.
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"


def tracked() -> list[str]:
    """Return the files of the repository, and those that are about to be."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_the_source_distribution_holds_all_of_the_repository(tmp_path):
    source = tmp_path / "source"
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
        (source / name).chmod((ROOT / name).stat().st_mode)
    built = subprocess.run(
        [sys.executable, "-c", BUILD, str(tmp_path)], cwd=source, capture_output=True, text=True, check=True
    )
    with tarfile.open(tmp_path / built.stdout.splitlines()[-1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert not set(tracked()) - names
    assert {"tests/conftest.py", "tests/data/entry_v0.json", "leaderboard/nano/board.json", "LICENSE"} <= names


def test_types_are_packaged():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package in ("benchmark", "leaderboard"):
        assert (ROOT / package / "py.typed").is_file() and "py.typed" in data[package]


def test_the_extra_all_is_every_other_that_users_need():
    (line,) = EXTRAS["all"]
    (names,) = re.findall(r"^winnow-bench\[(.*)\]$", line)
    assert set(names.split(",")) == set(EXTRAS) - {"all", "docs", "test"}
    page = (ROOT / "docs" / "installing.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.M)) == set(EXTRAS) - {"all"}


def test_every_dependency_has_a_lower_bound_or_is_bound_by_another():
    bound = {re.split(r"[<>=!\[]", each)[0] for each in PROJECT["dependencies"] if ">=" in each}
    assert len(bound) == len(PROJECT["dependencies"])
    for extra in set(EXTRAS) - {"all"}:
        for each in EXTRAS[extra]:
            assert ">=" in each or "==" in each or re.split(r"[<>=!\[]", each)[0] in bound, each


def test_the_workflow_calls_what_decides_on_every_version_of_python():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    assert jobs["all"]["strategy"]["matrix"]["python"] == PYTHONS
    assert ".ci/run" in [step.get("run") for step in jobs["all"]["steps"]]
    runs = [step.get("run", "") for step in jobs["oldest"]["steps"]]
    assert any("--resolution lowest-direct" in run for run in runs)
    for name in re.findall(r"tests/\S+\.py", " ".join(runs)):
        assert (ROOT / name).is_file(), name
    assert [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", each)] == PYTHONS
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"


def test_the_hooks_are_those_of_ci():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    ci = (ROOT / ".ci" / "run").read_text()
    for hook in repo["hooks"]:
        assert hook["name"] in ci, hook["id"]


def test_the_versions_of_the_references_are_those_that_their_entries_state():
    lines = (ROOT / "constraints" / "references.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    entries = sorted((ROOT / "leaderboard" / "nano" / "entries").glob("*.json"))
    assert entries
    for path in entries:
        made_with = json.loads(path.read_text())["made_with"]
        assert {name: version for name, version in made_with.items() if name != "winnow-bench"} == pinned, path.name
