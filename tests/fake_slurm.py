"""A cluster of one machine: `sbatch`, `srun`, `scontrol` and `sacct` that do at once what Slurm would do in time.

It takes what our files and submitit hand to Slurm, keeps the arguments of every submission, holds jobs back whose
dependency failed, and queues a job again that asks for it.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

STATE = "FAKE_SLURM"  # the folder of the cluster's files
SIGNAL_AT = "FAKE_SLURM_SIGNAL_AT"  # a file; when it appears, the training job's time limit draws near


def install(bin_dir: Path, root: Path) -> dict[str, str]:
    """Put the commands, and `winnow` of this clone, into a folder; return the environment in which they are found."""
    bin_dir.mkdir()
    for name in ("sbatch", "srun", "scontrol", "sacct"):
        (bin_dir / name).write_text(f"#!{sys.executable} -S\n" + Path(__file__).read_text())
    (bin_dir / "winnow").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m benchmark "$@"\n')
    for path in bin_dir.iterdir():
        path.chmod(0o755)
    state = bin_dir / "jobs"
    state.mkdir()
    path = os.pathsep.join([str(bin_dir), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(root), STATE: str(state)}


def submissions(environment: dict[str, str]) -> list[dict]:
    """Return every submission, in order: its options, file, arguments, and how the job ended."""
    return [json.loads(path.read_text()) for path in sorted(Path(environment[STATE]).glob("*.json"))]


def sbatch(arguments: list[str]) -> int:
    state = Path(os.environ[STATE])
    at = next(number for number, text in enumerate(arguments) if not text.startswith("-"))
    options, file, rest = arguments[:at], Path(arguments[at]), arguments[at + 1 :]
    written = re.findall(r"^#SBATCH (\S+)", file.read_text(), re.M)
    job = {"options": options, "written": written, "file": str(file), "arguments": rest, "state": "PENDING"}
    number = 100 + len(list(state.glob("*.json")))
    record = state / f"{number}.json"
    record.write_text(json.dumps(job))
    given = dict(text.lstrip("-").partition("=")[::2] for text in [*written, *options])
    needed = given.get("dependency", "").removeprefix("afterok:")
    if needed and json.loads((state / f"{needed}.json").read_text())["state"] != "COMPLETED":
        job["state"] = "CANCELLED"
    elif "parsable" in given:  # ours: the three jobs, one after the other
        job["runs"] = 0
        while job["state"] in ("PENDING", "REQUEUED"):
            job["runs"] += 1
            code = _run_batch(file, rest, number, Path(given["output"].replace("%j", str(number)).replace("%x", "job")))
            again = state / f"{number}.requeue"
            job["state"] = "REQUEUED" if again.exists() else "COMPLETED" if code == 0 else "FAILED"
            again.unlink(missing_ok=True)
    else:  # submitit's, which waits for it
        count = int(re.match(r"0-(\d+)", given["array"]).group(1)) + 1 if "array" in given else 0
        for task in range(count or 1):
            ids = {"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(task)} if count else {}
            environment = {**os.environ, **ids, "SLURM_JOB_ID": str(number + task), "SLURM_PROCID": "0"}
            with (state / f"{number}_{task}.out").open("w") as log:
                subprocess.Popen(["bash", str(file)], env=environment, stdout=log, stderr=log, start_new_session=True)
        job["state"] = "RUNNING"
    record.write_text(json.dumps(job))
    print(number if "parsable" in given else f"Submitted batch job {number}")
    return 0


def _run_batch(file: Path, arguments: list[str], number: int, output: Path) -> int:
    names = {"SLURM_JOB_ID": str(number), "SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_NUM_NODES": "1"}
    with output.open("a") as log:
        process = subprocess.Popen(
            ["bash", str(file), *arguments], env={**os.environ, **names}, stdout=log, stderr=subprocess.STDOUT
        )
    at = os.environ.get(SIGNAL_AT)
    if at and file.stem == "train":
        while process.poll() is None and not Path(at).exists():
            time.sleep(0.02)
        if not (file_sent := Path(os.environ[STATE]) / "signalled").exists():
            file_sent.touch()
            process.send_signal(signal.SIGUSR1)
    return process.wait()


def srun(arguments: list[str]) -> int:
    output = None
    while arguments[0].startswith("-"):
        option = arguments.pop(0)
        if option in ("--output", "--error"):
            value = arguments.pop(0)
            array = f"{os.environ.get('SLURM_ARRAY_JOB_ID')}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
            value = value.replace("%A_%a", array).replace("%j", os.environ["SLURM_JOB_ID"]).replace("%t", "0")
            output = value if option == "--output" else output
    file = Path(output).open("a") if output else None  # noqa: SIM115
    process = subprocess.Popen(arguments, stdout=file, stderr=file)
    signal.signal(signal.SIGUSR1, lambda number, _: process.send_signal(number))
    return process.wait()


def scontrol(arguments: list[str]) -> int:
    if arguments[0] == "requeue":
        (Path(os.environ[STATE]) / f"{arguments[1]}.requeue").touch()
    else:
        print(arguments[-1])
    return 0


def sacct(_: list[str]) -> int:
    print("JobID|State|NodeList")
    return 0


if __name__ == "__main__":
    command = {"sbatch": sbatch, "srun": srun, "scontrol": scontrol, "sacct": sacct}[Path(sys.argv[0]).name]
    sys.exit(command(sys.argv[1:]))
