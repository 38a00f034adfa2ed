"""Placeholder until merged."""

from pathlib import Path

from benchmark.tasks import Task


def local_set(task: Task, eval_dir: Path) -> Path:
    return eval_dir / task.folder_name
