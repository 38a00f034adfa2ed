"""From key=value arguments to a configuration: names and values are checked, then Hydra composes it and runs jobs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmark.cli.help import CONF_DIR, default_filters, verb_help
from benchmark.cli.job import Job, hydra_sentence
from benchmark.cli.sweep import Sweep, check_launching
from benchmark.runtime.console import rank_of_process
from benchmark.runtime.errors import UserError
from benchmark.runtime.failures import EXIT_PARTS

HYDRA_FLAGS = ("-h", "--help", "--cfg=job", "--resolve")


@dataclass
class HydraCommand:
    """A verb with key=value options, composed by Hydra after its names are checked."""

    verb: str
    arguments: list[str]
    overrides: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    is_sweep: bool = False
    plugins: list[str] = field(default_factory=list)
    swept: set[str] = field(default_factory=set)  # options with several values
    launcher: str = "basic"  # Hydra's name of what starts a sweep's jobs

    @classmethod
    def parse(cls, verb: str, arguments: list[str]) -> HydraCommand:
        """Sort the arguments into overrides and flags."""
        from benchmark.runtime.paths import as_location

        command = cls(verb, arguments)
        for argument in arguments:
            if argument in ("-m", "--multirun"):
                command.is_sweep = True
            elif argument in HYDRA_FLAGS:
                command.flags.append(argument)
            elif argument.startswith("-"):
                known = ["-m", *HYDRA_FLAGS]
                raise UserError(
                    f"winnow {verb} has no flag {argument!r}; options are key=value (winnow {verb} --help), flags are "
                    f"{', '.join(known)}",
                    code="usage",
                )
            elif argument.startswith("+") and not argument.lstrip("+").startswith("hydra."):
                raise UserError(
                    f"write {argument.lstrip('+')}, not {argument}; options cannot be added to winnow {verb}",
                    code="option-syntax",
                )
            elif "=" in argument and not argument.startswith("~"):
                key, _, value = argument.partition("=")
                command.overrides.append(f"{key}={as_location(value)}" if value.startswith("~") else argument)
            else:
                raise UserError(
                    f"winnow {verb} takes key=value options, not {argument!r}; see winnow {verb} --help",
                    code="option-syntax",
                )
        return command

    def execute(self) -> int:
        """Check, compose and run; in a sweep, run every job and list the failures at the end."""
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.errors import HydraException

        from benchmark.registry import load_strategies, load_tasks
        from benchmark.runtime.paths import as_location

        parsed = []
        for text in self.overrides:
            try:
                parsed += OverridesParser.create().parse_overrides([text])
            except HydraException as error:
                raise UserError(
                    f"cannot read the option {text}; quote a value with special characters: 'name=\"value\"'",
                    code="option-syntax",
                ) from error
        self.plugins = [str(as_location(str(path)).resolve()) for path in _flat_values(parsed, "plugins")]
        if {"-h", "--help"} & set(self.flags):
            load_strategies(self.plugins)
            print(verb_help(self.verb), end="")
            return 0
        if self.verb == "evaluate" and any(override.key_or_group == "model" for override in parsed):
            load_tasks(self.plugins)  # no experiment, so no strategies, some of which take long to load
        else:
            load_strategies(self.plugins)
        self._check(parsed)
        return self._compose_and_run()

    def _check(self, parsed: list[Any]) -> None:
        """Check what can be checked before Hydra composes: names, sweeps, and which filters there are."""
        from benchmark.cli.command_table import COMMANDS
        from benchmark.cli.names import check_override_name
        from benchmark.cli.options import takes_filters
        from benchmark.scales import get_scale

        filters = [str(name) for name in _flat_values(parsed, "filters")] or default_filters(self.verb)
        for override in parsed:
            check_override_name(self.verb, override.key_or_group, filters)
        self._check_sweep(parsed)
        for name in _flat_values(parsed, "scale"):
            get_scale(str(name))
        if takes_filters(COMMANDS[self.verb].verb.config):
            _check_filters(parsed, filters)

    def _check_sweep(self, parsed: list[Any]) -> None:
        """Raise UserError where several values, ranks, launchers or one folder do not go with a sweep, or without."""
        given = {override.key_or_group for override in parsed}
        if self.is_sweep and rank_of_process()[1] > 1:
            raise UserError("a sweep does not work on ranks; start torchrun once for every job", code="not-on-ranks")
        self.launcher = next((str(name) for name in _flat_values(parsed, "hydra/launcher")), self.launcher)
        check_launching(given, self.launcher, self.is_sweep)
        if self.is_sweep and self.flags:
            raise UserError(f"{self.flags[0]} shows the configuration of one job; leave out -m", code="usage")
        self.swept = swept = {override.key_or_group for override in parsed if override.is_sweep_override()}
        if swept and not self.is_sweep:
            raise UserError(
                f"{', '.join(sorted(swept))}: several values need a sweep: winnow {self.verb} -m ...", code="sweep"
            )
        if "exp_dir" in given - swept and swept - {"seeds", "exp_dir"} and self.verb in ("run", "filter"):
            raise UserError(
                f"a sweep over {', '.join(sorted(swept - {'seeds'}))} with one exp_dir would mix different experiments "
                "in it; leave exp_dir out, and each job gets a folder of its own",
                code="sweep",
            )

    def _compose_and_run(self) -> int:
        from hydra.core.config_store import ConfigStore

        from benchmark.cli.command_table import COMMANDS
        from benchmark.selection.rules import filter_defaults, known_strategies

        store = ConfigStore.instance()
        store.store(name=f"{self.verb}_options", node=COMMANDS[self.verb].verb.config)
        for strategy in known_strategies():
            # `selected` marks the filters that a job uses; a sweep has the options of others too.
            node = {"selected": True, **filter_defaults(strategy)}
            store.store(group="filters", name=strategy.name, node=node, package=f"filters.{strategy.name}")
        return self._sweep() if self.is_sweep else self._run_one()

    def _run_one(self) -> int:
        job = Job(self.verb, tuple(self.arguments), tuple(self.plugins))
        outcomes: list[int] = []

        def noting(config: Any) -> int:
            outcomes.append(job(config))
            return outcomes[-1]

        self._call_hydra(noting, self.overrides)
        return max(outcomes, default=0)

    def _sweep(self) -> int:
        # A job that does not use a filter must not fail over that filter's options: `++` adds them where they are
        # not; their names are checked already.
        overrides = [f"++{text}" if text.startswith("filters.") else text for text in self.overrides]
        sweep = Sweep.plan(overrides, self.swept, self.launcher, self.verb)
        job = Job(self.verb, tuple(self.arguments), tuple(self.plugins), sweep.dir, frozenset(self.swept))
        given = {text.lstrip("+").split("=")[0] for text in overrides}
        with sweep.launched() as handles:
            try:
                self._call_hydra(job, [*overrides, *sweep.overrides(given), "--multirun"])
            except (KeyboardInterrupt, SystemExit):
                sweep.say_progress()
                raise
            except Exception as error:
                sweep.remove_if_unused(handles)
                if sweep.uses_submitit and isinstance(error, RuntimeError):  # submitit's, or of what it calls
                    raise UserError(
                        f"the sweep's jobs cannot be started: {' '.join(str(error).split())}", code="cluster-refused"
                    ) from error
                raise
        return EXIT_PARTS if sweep.outcome(handles) else 0

    def _call_hydra(self, job: Callable[[Any], int], overrides: list[str]) -> None:
        """Have Hydra compose the configuration and call the job with it, once or for every job of a sweep."""
        import hydra
        from hydra.errors import HydraException

        arguments, environment = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
        sys.argv = ["winnow", *self.flags, *overrides]
        os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, where Hydra would print and exit
        try:
            hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=self.verb)(job)()
        except HydraException as error:
            raise UserError(hydra_sentence(error), code="option-value") from error
        finally:
            sys.argv = arguments
            if environment is None:
                del os.environ["HYDRA_FULL_ERROR"]
            else:
                os.environ["HYDRA_FULL_ERROR"] = environment


def _check_filters(parsed: list[Any], selected: list[str]) -> None:
    """Raise UserError where the overrides name no filters, name them in two ways, or give options of others."""
    from benchmark.registry import get_chooser

    given = {override.key_or_group for override in parsed}
    if "subset" in given and "filters" in given:
        raise UserError("subset= uses a file as it is; give filters= or subset=, not both", code="option-conflict")
    of_filters = [override for override in parsed if override.key_or_group == "filters"]
    names = [str(name) for name in _flat_values(parsed, "filters")]
    if len(of_filters) > 1:
        raise UserError(
            f"filters= is given {len(of_filters)} times; write filters=[{','.join(dict.fromkeys(names))}]",
            code="option-conflict",
        )
    for name in names:
        get_chooser(name)
    for override in of_filters:
        value = override.value()
        if isinstance(value, list) and len(set(map(str, value))) != len(value):
            raise UserError(f"filters={[str(name) for name in value]} names a filter twice", code="option-value")
    for key in given:
        if key.startswith("filters.") and key.split(".")[1] not in selected:
            raise UserError(
                f"{key} is given, but the filters are {selected}; add {key.split('.')[1]!r} to filters=",
                code="option-conflict",
            )


def _flat_values(parsed: list[Any], key: str) -> list[Any]:
    """Return the single values that the overrides give a key, with lists and sweeps flattened."""

    def flatten(value: Any) -> list[Any]:
        if isinstance(value, list | tuple):
            return [inner for item in value for inner in flatten(item)]
        if hasattr(value, "list"):  # a ChoiceSweep
            return flatten(value.list)
        return [value.text if hasattr(value, "text") else value]

    return [item for override in parsed if override.key_or_group == key for item in flatten(override.value())]
