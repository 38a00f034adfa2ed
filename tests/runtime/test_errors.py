"""How commands fail: codes that stay, one sentence for what a user can mend, a traceback in a file for a defect."""

import ast
import builtins
import errno
import io
import os
import pickle
import re
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from torch.utils.data import DataLoader, Dataset

from benchmark.cli.command_table import COMMANDS, VERB_NAMES
from benchmark.cli.commands import filter as filter_command
from benchmark.cli.job import Job
from benchmark.cli.main import main
from benchmark.cli.options import option_names
from benchmark.registry import STRATEGIES
from benchmark.runtime import errors, failures
from benchmark.runtime.errors import NotFoundError, UnknownNameError, UserError
from benchmark.runtime.failures import EXIT_INTERNAL, EXIT_USER, Message, explain
from benchmark.selection.rules import make_rule
from tests.conftest import uid, write_pool

ROOT = Path(__file__).resolve().parents[2]
FOR_USERS = ("scripts/download", "scripts/make_centroids.py")
CODE_OF = re.compile(r"[a-z]+(-[a-z]+)*")
SOURCES = sorted(path for folder in ("benchmark", "leaderboard", "scripts") for path in (ROOT / folder).rglob("*.py"))
# What says itself what is the matter, and is told by its kind: see `benchmark.runtime.failures.SYSTEM_KINDS`.
MAY_BE_RAISED = {"MemoryError", "SystemExit", "AssertionError", "KeyboardInterrupt", "ConnectionError", "TimeoutError"}
# Raised and caught in one function, or in a process of another environment that has no Winnow.
CAUGHT_THERE = {
    ("benchmark/__init__.py", "AttributeError"),  # what PEP 562 has a module raise
    ("benchmark/toolbox/hub_rows.py", "OSError"),
    ("benchmark/training/state.py", "OSError"),
    ("benchmark/runtime/executor.py", "ImportError"),
    ("scripts/download/runner.py", "ValueError"),
}


def user_errors(tree):
    """Yield every call that makes an error for users."""
    names = {"UserError", "NotFoundError", "UnknownNameError"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            yield node


def codes_in_sources():
    """Return every code that a program of ours may show, with a place where it is given."""
    found = {}
    for path in SOURCES:
        place = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text())):
            given = []  # also in calls of kinds of errors of a module's own, and as their defaults
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("Error"):
                given = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "default_code":
                given = [node.value]
            for constant in (each for value in given for each in ast.walk(value)):
                if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                    found.setdefault(constant.value, f"{place}:{node.lineno}")
    for kind in (UserError, NotFoundError, UnknownNameError):
        found.setdefault(kind.default_code, "benchmark/runtime/errors.py")
    for code in (*failures.SYSTEM_CODES.values(), *failures.SYSTEM_KINDS.values(), failures.OTHER_SYSTEM_CODE):
        found.setdefault(code, "benchmark/runtime/failures.py")
    for node in ast.walk(ast.parse((ROOT / "benchmark" / "runtime" / "failures.py").read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Message", "Ending"):
            code = node.args[-1]
            if isinstance(code, ast.Constant) and isinstance(code.value, str):
                found.setdefault(code.value, "benchmark/runtime/failures.py")
    return found


def documented_codes():
    """Return the codes of the table in `docs/errors.md`."""
    lines = (ROOT / "docs" / "errors.md").read_text().splitlines()
    return [match[1] for line in lines if (match := re.match(r"\| `([a-z-]+)` \| .+ \|$", line))]


def test_every_code_is_in_the_documented_table_and_every_row_of_it_is_used():
    in_sources, documented = codes_in_sources(), documented_codes()
    missing = {code: place for code, place in in_sources.items() if code not in documented}
    assert not missing, f"write a row for each in docs/errors.md: {missing}"
    assert sorted(set(documented) - set(in_sources)) == []
    assert documented == sorted(set(documented)) and all(CODE_OF.fullmatch(code) for code in documented)


def test_every_error_for_users_has_a_code_that_stands_in_the_source():
    without = []
    for path in SOURCES:
        for call in user_errors(ast.parse(path.read_text())):
            codes = [keyword.value for keyword in call.keywords if keyword.arg == "code"]
            if not codes:
                without.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert without == []


def test_what_users_can_mend_is_raised_as_such_and_never_as_a_bare_error_of_pythons():
    found = []
    for path in SOURCES:
        place = str(path.relative_to(ROOT))
        if place.startswith("scripts/") and not place.startswith(FOR_USERS):
            continue  # ours: they make what is shipped, and measure
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Raise) or node.exc is None:
                continue
            name = ast.unparse(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
            is_pythons = hasattr(builtins, name)
            if is_pythons and name not in MAY_BE_RAISED and (place, name) not in CAUGHT_THERE:
                is_systems = name == "OSError" and isinstance(node.exc, ast.Call) and len(node.exc.args) >= 2
                if not is_systems:  # OSError(errno, words) says by its number what is the matter
                    found.append(f"{place}:{node.lineno}: {name}")
    assert found == []


# --- What is told --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [UserError, NotFoundError, UnknownNameError])
def test_an_error_keeps_sentence_and_code_on_its_way_from_another_process(kind):
    made = kind("no 'x' there", code="column-missing")
    came = pickle.loads(pickle.dumps(made))
    assert type(came) is kind and str(came) == "no 'x' there" and came.code == "column-missing"
    assert kind("y").code == kind.default_code and isinstance(came, ValueError)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (UserError("a\n  b", code="x-y"), Message("a b", "x-y")),
        (UnknownNameError("no 'x'"), Message("no 'x'", "unknown-name")),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.txt"), Message("No such file: a.txt", "not-found")),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            Message("Permission denied: /x", "permission-denied"),
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "/x"),
            Message("Read-only file system: /x", "permission-denied"),
        ),
        (OSError(errno.ENOSPC, "no space for the states"), Message("no space for the states", "disk-full")),
        (OSError(errno.EIO, "Input/output error", "/x"), Message("Input/output error: /x", "system")),
        (
            ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
            Message("Connection refused", "unreachable"),
        ),
        (ConnectionError("http://x answers 404"), Message("http://x answers 404", "unreachable")),
        (MemoryError("step 0"), Message("out of memory (step 0)", "out-of-memory")),
        (MemoryError(), Message("out of memory (no more could be had)", "out-of-memory")),
        # Defects of ours, whatever their kind:
        (ValueError("a"), None), (KeyError("imagenet1k"), None), (OSError("words alone"), None),
        (RuntimeError("x"), None), (AssertionError(), None), (TypeError("x"), None), (RecursionError("x"), None),
    ],
)  # fmt: skip
def test_what_can_be_mended_is_told_by_sentence_and_code_and_nothing_else_is(error, told):
    assert explain(error) == told


def test_a_full_disk_says_how_to_go_on():
    told = explain(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert told is not None and told.code == "disk-full" and "run the same command again" in told.sentence


def test_memory_of_a_gpu_that_runs_out_is_told_like_any_memory():
    import torch

    told = explain(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert told is not None and told.code == "out-of-memory" and "2 GiB" in told.sentence


class _Failing(Dataset):
    def __init__(self, how):
        self.how = how

    def __len__(self):
        return 1

    def __getitem__(self, index):
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise {"user": UserError("x.jpg cannot be decoded", code="eval-set-invalid"), "ours": KeyError("x")}[self.how]


@pytest.mark.parametrize(
    ("how", "sentence"),
    [("user", "x.jpg cannot be decoded"), ("killed", "a process that loads samples died"), ("ours", None)],
)
def test_what_fails_in_a_process_of_torchs_loader_is_told_as_here(how, sentence):
    with pytest.raises((UserError, KeyError, RuntimeError)) as raised:
        list(DataLoader(_Failing(how), num_workers=1))
    told = explain(raised.value)
    assert (told is None) if sentence is None else (told is not None and told.sentence.startswith(sentence))


# --- A defect ------------------------------------------------------------------------------------------------------


@pytest.fixture
def defect(monkeypatch, tmp_path, strategies):
    """A verb that fails as only we can make it; the experiment's folder is there."""

    def fail(options, log):
        if options.exp_dir:
            options.exp_dir.mkdir()
            failures.keep_tracebacks_in(options.exp_dir / "logs")
        {}["imagenet1k"]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(filter_command, "VERB", replace(filter_command.VERB, work=fail))
    monkeypatch.setenv("WINNOW_CACHE_DIR", str(tmp_path / "cache"))
    yield tmp_path
    failures.keep_tracebacks_in(None)


def test_a_defect_is_told_as_ours_and_its_traceback_lies_in_the_experiments_logs(defect, capsys):
    assert main(["filter", "exp_dir=mine"]) == EXIT_INTERNAL == 70
    told = capsys.readouterr().err
    (path,) = (defect / "mine" / "logs").iterdir()
    assert told.startswith("winnow: internal error: KeyError: 'imagenet1k'\n") and told.count("\n") == 2
    assert f"mine/logs/{path.name}; please report it" in told and "Traceback" not in told
    text = path.read_text()
    for part in ("Traceback (most recent call last)", "KeyError: 'imagenet1k'", "command: winnow filter exp_dir=mine"):
        assert part in text
    assert re.search(r"Winnow \d.*\n(.*\n)*Python 3\..*\npackages: torch .*numpy ", text)


def test_a_defect_without_an_experiment_is_kept_in_the_cache_and_two_of_one_second_apart(defect, capsys):
    assert [main(["filter"]), main(["filter"])] == [EXIT_INTERNAL] * 2
    assert len(list((defect / "cache" / "errors").iterdir())) == 2
    assert str(defect / "cache" / "errors" / "error-") in capsys.readouterr().err


def test_a_defect_is_told_even_where_no_file_can_be_written(defect, capsys, monkeypatch):
    monkeypatch.setenv("WINNOW_CACHE_DIR", "/proc/nowhere")
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/proc/nowhere")
    assert main(["filter"]) == EXIT_INTERNAL
    told = capsys.readouterr().err
    assert "Traceback (most recent call last)" in told and "The traceback is above" in told


def test_the_traceback_is_shown_where_it_is_asked_for(defect, capsys, monkeypatch):
    monkeypatch.setenv("WINNOW_TRACEBACK", "1")
    assert main(["filter"]) == EXIT_INTERNAL
    told = capsys.readouterr().err
    assert "Traceback (most recent call last)" in told and "The traceback is in " in told
    assert main(["rnu"]) == EXIT_USER
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_defect_in_a_script_is_told_the_same_way(defect, capsys, monkeypatch):
    from scripts import download_assets

    monkeypatch.setattr(download_assets, "names_of", lambda _: {}["x"])
    assert download_assets.main(["fat.txt"]) == EXIT_INTERNAL
    assert capsys.readouterr().err.startswith("error: internal error: KeyError: 'x'\n")
    (path,) = (defect / "cache" / "errors").iterdir()
    assert "command: 'python scripts/download_assets.py' fat.txt" in path.read_text()


def test_the_help_and_the_page_name_every_exit_code(capsys):
    assert main(["--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    page = (ROOT / "docs" / "errors.md").read_text()
    codes = [failures.EXIT_PROBLEMS, EXIT_USER, failures.EXIT_PARTS, EXIT_INTERNAL]
    for code in (0, *codes):
        assert re.search(rf"[ ;:]{code}: ", told) and f"\n| {code} | " in page, code
    assert "128 + n: " in told and "\n| 128 + n | " in page


def test_a_reader_that_has_gone_ends_the_command_as_the_signal_would():
    command = [sys.executable, "-m", "benchmark", "list", "filters"]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, cwd=ROOT, text=True)
    finally:
        os.close(writing)
    assert done.returncode == 128 + signal.SIGPIPE and done.stderr == ""


def test_a_pipe_that_breaks_inside_is_no_reason_to_end_in_silence(defect, capsys, monkeypatch):
    def fail(config, command):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(filter_command, "VERB", replace(filter_command.VERB, work=fail))
    assert main(["filter"]) == EXIT_USER
    assert "winnow: Broken pipe [unreachable]" in capsys.readouterr().err


def test_a_variable_of_the_environment_that_is_no_number_is_told(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert main(["list", "scales"]) == EXIT_USER
    assert "WORLD_SIZE" in capsys.readouterr().err


# --- Options: no value of any of them is met by a traceback --------------------------------------------------------

VALUES = [
    "3", "-1", "1.5", "true", "null", "[]", "[1,2]", "[[1]]", "{a:1}", "{}", "''", "x", "nan", "inf", "1e400", "'a b'",
    "[null]", "[x,y]", "[{a:b}]", "99999999999999999999999999", "'\x00'", "-", "/", "'???'", "'nowhere://y'", "'ü'",
    ".", "'" + "a" * 300 + "'", "..", "x:y", "'*'", "'[a]'", "1_000", "0x10", "'\n'", "file:///x", "/dev/null",
    "'~nobody-x/y'", "'${'",
]  # fmt: skip
COMMON = ["scale=pico", "pool_dir=pool"]
GIVEN = {"run": [], "filter": [], "train": ["exp_dir=exp"], "reshard": ["exp_dir=exp", "out_dir=new"]}


class ReachedError(Exception):
    """All options are taken; the work itself would begin here."""


@pytest.fixture
def composed(tmp_path, monkeypatch, strategies):
    """The plain configuration of every verb, over a pool and an experiment; no stage does its work."""
    monkeypatch.chdir(tmp_path)
    write_pool(
        tmp_path / "pool", {"uid": [uid(n) for n in range(4)], "clip_l14_similarity_score": [0.1, 0.2, 0.3, 0.4]}
    )
    assert main(["filter", *COMMON, "exp_dir=exp"]) == 0
    found = {}
    monkeypatch.setattr(Job, "_work", lambda job, config: found.setdefault(job.verb, job._plain(config)) and 0)
    for verb in VERB_NAMES:
        assert main([verb, *COMMON, *GIVEN.get(verb, ["exp_dir=exp"])]) == 0

    def reached(*_, **__):
        raise ReachedError

    reached_by = {
        "choices": ("filter_stage",),
        "commands.run": ("say_reads", "train_stage", "evaluate_stage", "report_stage"),
        "commands.filter": ("say_reads",),
        "commands.train": ("train_stage",),
        "commands.evaluate": ("evaluate_stage", "evaluate_model"),
        "commands.report": ("report_stage",),
        "pools": ("build_embedded_pool",),
    }
    for module, names in reached_by.items():
        for name in names:
            monkeypatch.setattr(f"benchmark.cli.{module}.{name}", reached)
    monkeypatch.setattr("benchmark.cli.commands.run.check_evaluation_data", lambda *_, **__: None)
    monkeypatch.setattr("benchmark.pool.reshard.reshard", reached)
    monkeypatch.setattr("benchmark.cli.dry_run.resharding_lines", reached)
    monkeypatch.setattr("benchmark.cli.dry_run.training_lines", reached)
    return found


def values_of(texts, name="option"):
    """Return the values that Hydra makes of texts, those that it takes."""
    for text in texts:
        override = OverridesParser.create().parse_overrides([f"{name}={text}"])[0]
        value = override.value()
        yield text, getattr(value, "text", value)


@pytest.mark.parametrize("verb", VERB_NAMES)
def test_no_value_of_any_option_is_met_by_a_traceback(composed, verb):
    values, num_refused = list(values_of(VALUES)), 0
    for option in option_names(COMMANDS[verb].verb.config):
        for text, value in values:
            typed = str(value) if option in ("scale", "wandb") and value is not None else value
            config = {**composed[verb], option: typed}
            if verb == "evaluate" and option in ("model", "checkpoint", "out_dir"):
                config |= {"exp_dir": None, "model": value if option == "model" else "ViT-B-32"}
            if option == "plugins":
                continue  # which the command line has taken as paths before: below
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                try:
                    COMMANDS[verb].verb(config, ["winnow", verb])
                except ReachedError:
                    continue
                except Exception as error:
                    told = explain(error)
                    assert told is not None, f"{verb} {option}={text}: {type(error).__name__}: {error}"
                    num_refused += 1
    assert num_refused > 2 * len(option_names(COMMANDS[verb].verb.config))


def test_no_value_of_any_filters_option_is_met_by_a_traceback(strategies):
    values, num_refused = list(values_of(VALUES)), 0
    for name, strategy in STRATEGIES.items():
        if strategy.kind == "signal":
            continue
        for option in [*strategy.options, "fraction", "threshold"]:
            for text, value in values:
                try:
                    make_rule(name, {option: value})
                except UserError:
                    num_refused += 1
                except Exception as error:
                    pytest.fail(f"filters.{name}.{option}={text}: {type(error).__name__}: {error}")
    assert num_refused > 100


HARD = ["3", "{a:1}", "'${nowhere}'", "'${'", "[[1]]", "glob(*)", "'\x00'"]


@pytest.mark.parametrize("number", range(len(HARD)))
def test_no_value_on_the_command_line_is_met_by_a_traceback(composed, capsys, number):
    """Of each option of all verbs with one hard value, the values taking turns."""
    given = [(verb, option) for verb in VERB_NAMES for option in option_names(COMMANDS[verb].verb.config)]
    given += [("run", f"filters.clip_score.{option}") for option in ("fraction", "threshold", "arch", "selected")]
    given += [("filter", "filters"), ("filter", "hydra/launcher"), ("report", "plugins")]
    for place, (verb, option) in enumerate(given[number :: len(HARD)]):
        value = HARD[(number + place) % len(HARD)]
        code = main([verb, *(text for text in COMMON if not text.startswith(option)), f"{option}={value}"])
        told = capsys.readouterr().err
        assert code in (0, EXIT_USER), f"{verb} {option}={value}: {told}"
        assert "Traceback" not in told and (code == 0 or re.search(r"^winnow: .* \[[a-z-]+\]$", told, re.M)), told


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["run", "scale=3"], "unknown-scale"),
        (["run", "scale=[a]"], "unknown-scale"),
        (["run", "seeds=x"], "option-type"),
        (["run", "dry_run=3"], "option-type"),
        (["pool", "build", "--scale", "3"], "unknown-scale"),
        (["pool", "build", "--pool-seed", "x"], "usage"),
        (["pool", "index", "\x00"], "pool-not-found"),
        (["pool", "check", "~nobody-x/pool"], "not-found"),
        (["leaderboard", "table", "--board", "nowhere"], "board-not-found"),
        (["subset", "info", "~nobody-x/a.npy"], "not-found"),
    ],
)
def test_a_value_of_another_type_is_refused_by_code(tmp_path, monkeypatch, capsys, arguments, code):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == EXIT_USER
    assert capsys.readouterr().err.endswith(f" [{code}]\n")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["fraction=0.2"], "It is an option of filters: filters.clip_score.fraction."),
        (["filters=basic", "fraction=0.2"], "It is an option of filters: filters."),
        (["filters=[dedup,clip_score]", "seed=1"], "It is an option of filters: filters.dedup.seed."),
        (["clip_score.fraction=0.2"], "Did you mean 'filters.clip_score.fraction'?"),
        (["seed=1"], "Did you mean 'seeds'?"),
        (["worker=1"], "Did you mean 'workers'?"),
    ],
)
def test_a_filters_option_that_stands_alone_is_named_with_its_filter(strategies, capsys, arguments, hint):
    assert main(["run", *arguments]) == EXIT_USER
    told = capsys.readouterr().err
    assert hint in told and told.endswith(" [unknown-option]\n") and "accumulation'?" not in told


def test_the_errors_module_and_the_failures_module_load_no_heavy_package():
    code = "import sys, benchmark.runtime.failures\n"
    code += "assert not {'torch', 'pandas', 'pyarrow', 'hydra'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert errors.UserError("x").code == "invalid-input"
