"""Who may import whom, what the command line must not load, and a wheel that works from another folder."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    folder: sorted((ROOT / folder).rglob("*.py")) for folder in ("benchmark", "filters", "eval_tasks", "leaderboard")
}
MAY_LOAD_TORCH = {
    "evaluation/batch_encoder.py",
    "evaluation/checkpoints.py",
    "evaluation/decoding.py",
    "evaluation/encoding.py",
    "models/build.py",
    "models/pixels.py",
    "training/data.py",
    "training/exact.py",
    "training/health.py",
    "training/memory.py",
    "training/ranks.py",
    "training/state.py",
    "training/step.py",
    "training/train.py",
}

# From the ground up. Nothing imports what stands on a floor above its own, not even inside a function; what is named
# for type checkers alone counts as no import. Parts in one line share a floor.
FLOORS = [
    {"runtime", "registry", "scales"},
    {"pool"},
    {"models"},
    {"training"},
    {"toolbox"},
    {"embedded"},
    {"selection"},
    {"filters"},
    {"evaluation"},
    {"eval_tasks"},
    {"leaderboard"},
    {"experiment"},
    {"report"},
    {"cli"},
    {"api"},
]
MAX_LINES = 500  # of a file
MAX_DIRECT = 4  # files directly under benchmark/


def imports(path, *, top_level=False):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def part_of(module):
    """Return the part that a module belongs to: a folder or file of `benchmark`, or a folder beside it."""
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] if first == "benchmark" else first


def module_of(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def running_imports(path):
    """Yield the modules of ours that a file imports, in functions too, without what type checkers alone see."""
    modules = {module_of(each) for paths in FILES.values() for each in paths}
    waiting = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            spelt = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else str(node.module) for name in spelt]
        else:
            continue
        yield from (name for name in names if name in modules)


def test_nothing_imports_upwards():
    floor_of = {part: number for number, parts in enumerate(FLOORS) for part in parts}
    upwards = [
        f"{module_of(path)} imports {name}"
        for paths in FILES.values()
        for path in paths
        for name in running_imports(path)
        if part_of(module_of(path)) in floor_of and floor_of[part_of(module_of(path))] < floor_of.get(part_of(name), 0)
    ]
    assert not upwards
    found = {part_of(module_of(path)) for paths in FILES.values() for path in paths}
    assert found - floor_of.keys() == {"", "__main__", "conf"} & found


def test_no_module_imports_itself_through_others():
    imported = {
        module_of(path): {*running_imports(path)} - {module_of(path)} for paths in FILES.values() for path in paths
    }
    while leaves := {name for name, names in imported.items() if not names & imported.keys()}:
        imported = {name: names for name, names in imported.items() if name not in leaves}
    assert not imported, sorted(imported)


def test_the_folders_show_the_house():
    """What grows past this is split, or gets a folder of its own."""
    direct = [path.name for path in (ROOT / "benchmark").glob("*.py")]
    assert len(direct) <= MAX_DIRECT, direct
    for paths in FILES.values():
        for path in paths:
            assert len(path.read_text().splitlines()) <= MAX_LINES, path


@pytest.mark.parametrize("folder", ["filters", "eval_tasks"])
def test_filters_and_tasks_import_the_benchmark_and_never_each_other(folder):
    assert FILES[folder]
    for path in FILES[folder]:
        roots = {name.split(".")[0] for name in imports(path)}
        assert not roots & {"filters", "eval_tasks", "leaderboard", "scripts"}, path
        assert "benchmark" in roots, path


def test_the_benchmark_imports_no_filter_and_no_task():
    for path in FILES["benchmark"]:
        assert not {name.split(".")[0] for name in imports(path)} & {"filters", "eval_tasks", "scripts"}, path


def test_the_benchmark_names_no_filter():
    names = {path.stem for path in FILES["filters"]}
    for path in FILES["benchmark"]:
        constants = {
            node.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not constants & (names - {"random", "basic"}), path


def test_only_what_trains_or_encodes_loads_torch_and_open_clip():
    for path in FILES["benchmark"] + FILES["filters"] + FILES["eval_tasks"] + FILES["leaderboard"]:
        heavy = {name.split(".")[0] for name in imports(path, top_level=True)} & {
            "torch",
            "open_clip",
            "timm",
            "torchvision",
        }
        assert not heavy or path.relative_to(ROOT / "benchmark").as_posix() in MAY_LOAD_TORCH, path


def test_help_loads_no_torch():
    code = (
        "import sys\nfrom benchmark.cli.main import main\n"
        "for arguments in (['--help'], ['run', '--help'], ['list', 'filters'], ['list', 'tasks'], "
        "['pool', 'build', '--help']):\n"
        "    try:\n        main(arguments)\n    except SystemExit:\n        pass\n"
        "    loaded = {'torch', 'open_clip', 'torchvision', 'sklearn', 'ray'} & set(sys.modules)\n"
        "    assert not loaded, (arguments, loaded)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_every_module_begins_with_what_it_is():
    for paths in FILES.values():
        for path in paths:
            assert path.name == "__init__.py" or ast.get_docstring(ast.parse(path.read_text())), path


def test_the_wheel_works_from_another_folder(tmp_path):
    """Built and unpacked as an install would; the dependencies are those of this environment."""
    source = tmp_path / "source"
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in names.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-build-isolation", "--target", str(tmp_path / "site"), str(source)],
        check=True,
        capture_output=True,
    )
    code = (
        f"import sys; sys.path = [p for p in sys.path if p not in ('', {str(ROOT)!r})]\n"
        f"sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import benchmark; from benchmark.cli.main import main\n"
        f"assert benchmark.__file__.startswith({str(tmp_path)!r}), benchmark.__file__\n"
        "assert main(['list', 'filters']) == 0 and main(['list', 'tasks']) == 0 and main(['run', '--help']) == 0\n"
        "assert main(['leaderboard', 'table']) == 0\n"
        "from benchmark.models.reference import load_reference_model\n"
        "load_reference_model('l14')\n"
        "from benchmark.toolbox.wordnet import find_wordnet, load_wordnet, synset_names\n"
        "tables = find_wordnet(None, option='x')\n"
        "assert load_wordnet(tables).first_offset('dogs') == 2084071 and len(synset_names(tables)) == 86_554\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "clip_score" in result.stdout and "nano/shapes" in result.stdout
    licences = {path.read_text() for path in (tmp_path / "site").glob("*.dist-info/licenses/**/LICENSE")}
    assert licences == {(ROOT / name).read_text() for name in ("LICENSE", "benchmark/toolbox/wordnet_tables/LICENSE")}


def test_all_data_of_others_is_on_the_page_of_third_parties():
    page = (ROOT / "docs" / "third_party.md").read_text()
    named = re.findall(r"`((?:benchmark|tests|leaderboard)/[^`]+)`", page)
    assert all((ROOT / name).exists() for name in named)
    ours = {"benchmark/models/reference_b32.safetensors", "benchmark/models/reference_l14.safetensors"}
    ours |= {"tests/data/entry_v0.json", "tests/data/experiment_before_identity"}
    patterns = ("benchmark/**/*.gz", "benchmark/**/*.safetensors", "leaderboard/published/*", "leaderboard/**/*.png")
    found = [path for pattern in (*patterns, "tests/data/*") for path in ROOT.glob(pattern)]
    assert len(found) >= 12
    for path in found:
        name = path.relative_to(ROOT).as_posix()
        assert name in ours or any(name == each or name.startswith(f"{each}/") for each in named), name
