"""A command that takes key=value options: what it declares, how its options are read, and what it does with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import yaml

from benchmark.cli.options import Config, PoolConfig
from benchmark.runtime.files import write_bytes
from benchmark.runtime.storage import storage_errors

Options = TypeVar("Options")

LOGS_NAME = "logs"  # in an experiment: commands that worked on it, and tracebacks


@dataclass(frozen=True)
class CommandLog:
    """What was requested, to be written into the experiment that the command works on, outside every hash."""

    text: str

    @classmethod
    def of(cls, command: Sequence[str], config: Config) -> CommandLog:
        """Keep a command line and the configuration that it came to."""
        return cls(yaml.safe_dump({"command": [*command], "options": config}, sort_keys=False))

    def write(self, exp_dir: Path) -> None:
        """Write it into the experiment's logs, named by the time."""
        name = time.strftime("%Y%m%dT%H%M%S", time.gmtime()) + f"-{time.time_ns() % 10**9:09d}.yaml"
        write_bytes(exp_dir / LOGS_NAME / name, self.text.encode())


@dataclass(frozen=True)
class Verb(Generic[Options]):
    """A command with key=value options; `work` sees neither Hydra nor a configuration."""

    config: type[PoolConfig]
    read: Callable[[Config], Options]  # checks every value; raises UserError
    work: Callable[[Options, CommandLog], None]
    complete: Callable[[Config], Config] = dict  # fills in what the command line left open, before it is read

    def __call__(self, config: Config, command: Sequence[str]) -> None:
        """Do the command's work; what storage refuses is a UserError."""
        with storage_errors():
            config = self.complete(config)
            options = self.read(config)
            self.work(options, CommandLog.of(command, config))
