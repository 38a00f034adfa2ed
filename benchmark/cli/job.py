"""A job: what Hydra calls with a composed configuration, here or in a process of a sweep's own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.cli.sweep import hand_on, job_name, outcome_path, stops_raised, write_outcome
from benchmark.runtime.console import say
from benchmark.runtime.errors import UserError
from benchmark.runtime.failures import EXIT_SIGNAL, Ending, keep_tracebacks_in, reported


def hydra_sentence(error: BaseException) -> str:
    """Join the lines of Hydra's message, without its advice to write `+`, which we do not take, and its search path."""
    text = re.split(r"\n\s*(?:To append to your config|Config search path)", str(error))[0]
    cause = f": {str(error.__cause__).splitlines()[0]}" if str(error.__cause__ or "") else ""
    return " ".join(text.split()).rstrip(".") + (cause if cause[2:] not in text else "")


@dataclass(frozen=True)
class Job:
    """What Hydra calls with a composed configuration, perhaps in a process of another machine.

    It is pickled on its way there, and holds no more than that process needs.
    """

    verb: str
    arguments: tuple[str, ...]
    plugins: tuple[str, ...]
    sweep_dir: Path | None = None
    swept: frozenset[str] = frozenset()

    def __call__(self, config: Any) -> int:
        """Do the verb's work; return the exit code. In a sweep, write how it ended, and raise only for a stop."""
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import OmegaConf

        hydra_config = HydraConfig.get()
        given = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)
        assert isinstance(given, list)
        overrides = [str(text).removeprefix("++") for text in given]
        name = job_name(overrides, self.swept, self.verb)
        if self.sweep_dir is not None:
            outcome_path(self.sweep_dir, hydra_config.job.num).unlink(missing_ok=True)  # where it is queued again
            say(f"\njob {hydra_config.job.num}: {name}")
        keep_tracebacks_in(None)
        with stops_raised():
            ending = reported("winnow", lambda: self._work(config), [self.verb, *self.arguments])
        if self.sweep_dir is not None:
            write_outcome(self.sweep_dir, hydra_config.job.num, name, overrides, ending)
            if _by_signal(ending):
                hand_on(ending.exit_code - EXIT_SIGNAL)
                raise SystemExit(ending.exit_code)
        return ending.exit_code

    def _plain(self, config: Any) -> dict[str, Any]:
        """Return the configuration as plain values, of the chosen filters alone."""
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        try:
            container = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
        except OmegaConfBaseException as error:
            raise UserError(hydra_sentence(error), code="option-value") from error
        assert isinstance(container, dict)
        plain: dict[str, Any] = {str(key): value for key, value in container.items()}
        plain["plugins"] = list(self.plugins)
        plain["filters"] = {
            name: {key: value for key, value in options.items() if key != "selected"}
            for name, options in (plain.get("filters") or {}).items()
            if options.get("selected")
        }
        return plain

    def _work(self, config: Any) -> int:
        from benchmark.cli.command_table import COMMANDS
        from benchmark.registry import load_strategies

        load_strategies(self.plugins)  # a process of its own knows none yet
        COMMANDS[self.verb].verb(self._plain(config), ["winnow", self.verb, *self.arguments])
        return 0


def _by_signal(ending: Ending) -> bool:
    return ending.exit_code > EXIT_SIGNAL
