"""How a command ends that fails: a sentence and a code for what a user can mend, a file for a defect of ours."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import platform
import re
import select
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark import __version__
from benchmark.runtime.console import rank_of_process
from benchmark.runtime.errors import UserError
from benchmark.runtime.stopping import OtherRankFailed, Stopped

# What a command's exit code says; a signal's is 128 and its number, as shells have it.
EXIT_PROBLEMS, EXIT_USER, EXIT_PARTS, EXIT_INTERNAL, EXIT_SIGNAL = 1, 2, 3, 70, 128

HOW_TO_REPORT = "report it to Winnow's maintainers with that file and with what you did"

# Codes of what the system says, by number where it gives one, else by the kind of the error.
SYSTEM_CODES = {
    errno.ENOSPC: "disk-full",
    errno.EDQUOT: "disk-full",
    errno.EROFS: "permission-denied",
    errno.EPERM: "permission-denied",
    errno.EMFILE: "too-many-files",
    errno.ENFILE: "too-many-files",
    errno.ENAMETOOLONG: "name-too-long",
    errno.ENOMEM: "out-of-memory",
}
SYSTEM_KINDS: dict[type[OSError], str] = {
    FileNotFoundError: "not-found",
    PermissionError: "permission-denied",
    ConnectionError: "unreachable",
    TimeoutError: "unreachable",
    FileExistsError: "file-unusable",
    IsADirectoryError: "file-unusable",
    NotADirectoryError: "file-unusable",
}
OTHER_SYSTEM_CODE = "system"

OUR_PACKAGES = ("", "benchmark", "filters", "eval_tasks", "leaderboard", "scripts")
PACKAGES = (
    "torch",
    "open_clip_torch",
    "numpy",
    "pandas",
    "pyarrow",
    "hydra-core",
    "omegaconf",
    "fsspec",
    "safetensors",
    "pillow",
    "ray",
)
# What Python says of a path that can be none, in whichever option or file it was given.
_NO_PATHS = {
    "Could not determine home directory.": "a path begins with ~ and a name that is not a user of this machine",
    "embedded null byte": "a path holds a NUL character",
}
# What a driver or a card does; an assertion in a kernel or a wrong address is what we, or torch, made it do.
_GPU_FAILED = re.compile(r"CUDA error: (?!device-side assert|an illegal|misaligned)|.*NVIDIA driver")
_LOADER_FAILED = re.compile(r"Caught \w+ in DataLoader worker process \d+\.\n")
_LOADER_DIED = re.compile(r"DataLoader worker \(pid(\(s\))? [\d, ]+\) (is killed|exited)")


@dataclass(frozen=True)
class Message:
    """What a user reads of a failure that can be mended."""

    sentence: str
    code: str

    def __str__(self) -> str:
        return f"{self.sentence} [{self.code}]"


@dataclass(frozen=True)
class Ending:
    """How a command ended: its exit code, and what was said where it failed."""

    exit_code: int
    failure: str | None = None
    code: str | None = None  # of the failure


def explain(error: BaseException) -> Message | None:
    """Return the sentence and the code of what a user can mend; None for anything else, which is a defect of ours."""
    if isinstance(error, UserError):
        return Message(_joined(_of_loader(str(error))), error.code)
    if isinstance(error, MemoryError) or _is_torchs_memory(error):
        return Message(f"out of memory ({_joined(str(error)) or 'no more could be had'})", "out-of-memory")
    if isinstance(error, OSError):
        return _explain_system(error)
    if isinstance(error, ModuleNotFoundError) and (package := (error.name or "").partition(".")[0]) not in OUR_PACKAGES:
        return Message(f"the package {package} is needed and not installed: pip install {package}", "package-missing")
    if type(error) in (RuntimeError, ValueError) and str(error) in _NO_PATHS:
        return Message(_NO_PATHS[str(error)], "not-found")
    if isinstance(error, RuntimeError) and _GPU_FAILED.match(str(error)):
        return Message(f"the GPU does not work ({str(error).splitlines()[0]}); see nvidia-smi", "gpu-failed")
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        return Message(
            "no more threads can be started here; use fewer workers=, or raise `ulimit -u`", "too-many-threads"
        )
    if isinstance(error, RuntimeError) and _LOADER_DIED.match(str(error)):
        return Message(
            "a process that loads samples died (killed, or out of memory?); try fewer workers=, then run the same "
            "command again",
            "worker-died",
        )
    return None


def _explain_system(error: OSError) -> Message | None:
    """Tell what the system says: with its number, or as one of the kinds of OSError that say what is the matter."""
    code = SYSTEM_CODES.get(error.errno or 0) or next(
        (code for kind, code in SYSTEM_KINDS.items() if isinstance(error, kind)), None
    )
    if code is None and error.errno is None:
        return None
    code = code or OTHER_SYSTEM_CODE
    if code == "disk-full" and error.strerror == os.strerror(error.errno or 0) and not error.filename:
        return Message(
            "no space left on device; make room and run the same command again: it resumes from what is saved", code
        )
    text = _of_loader(str(error))
    if error.strerror:
        text = f"{error.strerror}: {os.fsdecode(error.filename)}" if error.filename else error.strerror
    return Message(_joined(text) or type(error).__name__, code)


def _is_torchs_memory(error: BaseException) -> bool:
    # By name and words: torch is not loaded for the sake of a failure, and has no kind of its own for a CPU's.
    is_gpus = type(error).__name__ == "OutOfMemoryError" and type(error).__module__.partition(".")[0] == "torch"
    return is_gpus or (isinstance(error, RuntimeError) and "DefaultCPUAllocator: " in str(error))


def _of_loader(text: str) -> str:
    """Return the sentence where torch's loader has put a process's traceback around it."""
    if not _LOADER_FAILED.match(text):
        return text
    last = [line for line in text.splitlines() if re.match(r"[A-Za-z_][\w.]*: ", line)]
    return last[-1].partition(": ")[2] if last else text


def _joined(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def end_of_script(path: str, work: Callable[[], int], arguments: Sequence[str] | None) -> int:
    """Run the work of a script of `scripts/`, as `reported` does that of `winnow`; return the exit code."""
    given = sys.argv[1:] if arguments is None else [str(argument) for argument in arguments]
    return reported(f"python scripts/{Path(path).name}", work, given, prefix="error").exit_code


def reported(program: str, work: Callable[[], int], arguments: Sequence[str], *, prefix: str = "winnow") -> Ending:
    """Run a command's work; say what went wrong, as one sentence where a user can mend it; return how it ended."""
    rank, size = 0, 1
    try:
        rank, size = rank_of_process()
        return Ending(work())
    except OtherRankFailed:
        return Ending(EXIT_USER)  # the first rank has said why
    except (KeyboardInterrupt, Stopped) as stop:
        number, what = (stop.number, f": {stop}") if isinstance(stop, Stopped) else (signal.SIGINT, "")
        name = signal.Signals(number).name
        if not rank:
            who = "" if prefix == "error" else f"{prefix}: "
            print(
                f"\n{who}interrupted by {name}{what}. What is finished stays; to go on, run "
                f"the same command again:\n"
                f"  {program} {' '.join(arguments)}",
                file=sys.stderr,
            )
        return Ending(EXIT_SIGNAL + number, f"interrupted by {name}", "interrupted")
    except Exception as error:  # here every command ends; what is not a user's error is shown as ours
        if isinstance(error, BrokenPipeError) and _reader_has_gone():
            # The reader (`| head`) has gone; nothing is left to say to it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return Ending(EXIT_SIGNAL + signal.SIGPIPE, "the reader of its output has gone", "interrupted")
        who = f"rank {rank} of {size}: " if size > 1 else ""
        message = explain(error)
        if message is not None:
            if os.environ.get("WINNOW_TRACEBACK"):
                traceback.print_exc()
            print(f"{prefix}: {who}{message}", file=sys.stderr)
            return Ending(EXIT_USER, str(message), message.code)
        text = f"internal error: {type(error).__name__}: {_joined(str(error))}".rstrip(": ")
        path = write_traceback(error, [program, *arguments])
        if path is None or os.environ.get("WINNOW_TRACEBACK"):
            traceback.print_exc()
        where = "The traceback is above" if path is None else f"The traceback is in {path}"
        print(
            f"{prefix}: {who}{text}\n  This is a fault of Winnow's, not of yours. {where}; please {HOW_TO_REPORT}.",
            file=sys.stderr,
        )
        return Ending(EXIT_INTERNAL, text + (f" ({path})" if path else ""), "internal")


def _reader_has_gone() -> bool:
    """Tell whether it is standard output's reader that has gone, and not that of another pipe."""
    try:
        polled = select.poll()
        polled.register(sys.stdout.fileno(), select.POLLERR)
        return any(event & select.POLLERR for _, event in polled.poll(0))
    except (OSError, ValueError, AttributeError):  # it is not a file, or closed
        return False


# --- The traceback of a defect -------------------------------------------------------------------------------------

_log_dir: Path | None = None


def keep_tracebacks_in(log_dir: Path | None) -> None:
    """Name the folder that takes the traceback of what fails from now on: an experiment's `logs`."""
    global _log_dir
    _log_dir = log_dir


def write_traceback(error: BaseException, command: Sequence[str]) -> Path | None:
    """Write a defect's traceback with what it takes to understand it; return the file, None where none could be made.

    It goes to the folder of `keep_tracebacks_in`, else to the user's cache, else to the temporary folder. It never
    raises: what matters is the defect.
    """
    try:
        text = "\n".join([*_circumstances(command), "", *traceback.format_exception(error)])
    except Exception:
        return None
    name = time.strftime("error-%Y%m%dT%H%M%S", time.gmtime()) + f"-{os.getpid()}.txt"
    for folder in _places():
        try:
            path = _free_name(folder() / name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
        except Exception:
            continue
        return path
    return None


def _places() -> Iterator[Callable[[], Path]]:
    if (log_dir := _log_dir) is not None and log_dir.parent.is_dir():
        yield lambda: log_dir
    yield lambda: _cache_dir() / "errors"
    yield lambda: Path(tempfile.gettempdir())


def _cache_dir() -> Path:
    from benchmark.runtime.paths import cache_dir

    return cache_dir()


def _free_name(path: Path) -> Path:
    """Return the path, or one with a number where there is such a file: two defects of one second."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def _circumstances(command: Sequence[str]) -> list[str]:
    rank, size = rank_of_process()
    return [
        f"Winnow {__version__}: internal error",
        f"time: {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}",
        f"command: {shlex.join(command)}",
        f"folder: {Path.cwd()}",
        *([f"rank: {rank} of {size}"] if size > 1 else []),
        f"Python {platform.python_version()} ({sys.executable}), {platform.platform()}",
        f"packages: {', '.join(f'{name} {version}' for name in PACKAGES if (version := _version(name)))}",
    ]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
