"""The command line: `winnow VERB ...`. What a user can mend prints as one sentence; exit codes mean what they say."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark import __version__
from benchmark.cli.sweep import Sweep, check_launching, hand_on, job_name, outcome_path, stops_raised, write_outcome
from benchmark.runtime.console import rank_of_process, say
from benchmark.runtime.errors import NotFoundError, UnknownNameError, UserError
from benchmark.runtime.failures import (
    EXIT_PARTS,
    EXIT_PROBLEMS,
    EXIT_SIGNAL,
    EXIT_USER,
    Ending,
    keep_tracebacks_in,
    reported,
)
from benchmark.runtime.names import nearest_name

if TYPE_CHECKING:
    from benchmark.evaluation.tasks import Task
    from benchmark.runtime.strategies import Strategy

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"
HYDRA_FLAGS = ("-h", "--help", "--cfg=job", "--resolve")
EXIT_SWEEP = EXIT_PARTS
__all__ = ["EXIT_SWEEP", "EXIT_USER", "entry_point", "main"]

HELP = """\
winnow: a benchmark for data filtering. Training and evaluation are fixed; you bring the rule that chooses the data.

  winnow run                        everything: pool, filter, training, evaluation, a table (embedded pool by default)
  winnow filter | train | evaluate  one stage of it
  winnow reshard                    cut a subset out of a pool's tars, in DataComp's layout
  winnow report                     a page that shows what an experiment kept and dropped
  winnow pool build                 draw an embedded pool
  winnow pool index|check DIR       find every sample of a pool; look a pool over
  winnow pool sample DIR            cut out a sub-pool
  winnow pool import                make a pool of somebody else's tars and parquet files
  winnow subset info FILE           what is in a subset file
  winnow subset and|or|minus|restrict|overlap A B ...   combine or compare subset files
  winnow list filters|tasks|scales|checkpoints   what there is
  winnow leaderboard table          the board
  winnow leaderboard compare A [B]  scores of a folder, a results file or a released checkpoint, beside another's

`winnow VERB --help` explains a verb. run, filter, reshard, train, evaluate and report take key=value
options, and sweep with -m:
  winnow run filters=clip_score filters.clip_score.fraction=0.2 seeds=[0,1,2]
  winnow run -m filters=no_filter,clip_score,random
Exit codes: 0: done; 1: a check found problems; 2: a mistake that you can mend, told in one sentence with its code in
brackets, such as [pool-not-found]; 3: jobs of a sweep failed; 70: an internal error, a fault of ours, whose traceback
is kept in a file; 128 + n: ended by signal n (130: Ctrl-C). WINNOW_TRACEBACK=1 shows every failure's traceback.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return reported("winnow", lambda: _dispatch(arguments), arguments).exit_code


def entry_point() -> None:
    """Run as the installed command `winnow`."""
    sys.exit(main())


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    verb, rest = arguments[0], arguments[1:]
    if rank_of_process()[1] > 1 and verb not in ("train", "evaluate"):
        raise UserError(
            f"winnow {verb} does not work on ranks; run it once, without torchrun (only train and evaluate do)",
            code="not-on-ranks",
        )
    if verb == "--version":
        print(f"winnow {__version__}")
        return 0
    ordinary: dict[str, Callable[[list[str]], int]] = {
        "pool": _pool,
        "subset": _subset,
        "list": _list,
        "leaderboard": _leaderboard,
    }
    hydra_verbs = ("run", "filter", "reshard", "train", "evaluate", "report")
    if verb in ordinary:
        return ordinary[verb](rest)
    if verb in hydra_verbs:
        return HydraCommand.parse(verb, rest).execute()
    known = [*hydra_verbs, *ordinary]
    raise UnknownNameError(
        f"unknown verb {verb!r}.{nearest_name(verb, known)} Verbs: {', '.join(known)}.", code="unknown-verb"
    )


def _hydra_sentence(error: BaseException) -> str:
    """Join the lines of Hydra's message, without its advice to write `+`, which we do not take, and its search path."""
    text = re.split(r"\n\s*(?:To append to your config|Config search path)", str(error))[0]
    cause = f": {str(error.__cause__).splitlines()[0]}" if str(error.__cause__ or "") else ""
    return " ".join(text.split()).rstrip(".") + (cause if cause[2:] not in text else "")


# --- Hydra verbs ---------------------------------------------------------------------------------------------------


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
                    f"winnow {verb} has no flag {argument!r}; options are key=value (winnow {verb} --help), flags: "
                    f"{', '.join(known)}",
                    code="usage",
                )
            elif argument.startswith("+") and not argument.lstrip("+").startswith("hydra."):
                raise UserError(
                    f"write {argument.lstrip('+')}, not {argument}; winnow {verb} adds no options", code="option-syntax"
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
            print(_verb_help(self.verb), end="")
            return 0
        if self.verb == "evaluate" and any(override.key_or_group == "model" for override in parsed):
            load_tasks(self.plugins)  # no experiment, so no strategies, some of which take long to load
        else:
            load_strategies(self.plugins)
        self._check(parsed)
        return self._compose_and_run()

    def _check(self, parsed: list[Any]) -> None:
        from benchmark.cli.options import check_override_name, takes_filters
        from benchmark.registry import get_chooser
        from benchmark.scales import get_scale

        filters = [str(name) for name in _flat_values(parsed, "filters")] or _default_filters(self.verb)
        for override in parsed:
            check_override_name(self.verb, override.key_or_group, filters)
        given = {override.key_or_group for override in parsed}
        if self.is_sweep and rank_of_process()[1] > 1:
            raise UserError("a sweep does not work on ranks; start torchrun once for every job", code="not-on-ranks")
        self.launcher = next((str(name) for name in _flat_values(parsed, "hydra/launcher")), self.launcher)
        check_launching(given, self.launcher, self.is_sweep)
        if self.is_sweep and self.flags:
            raise UserError(f"{self.flags[0]} shows the configuration of one job; leave -m out", code="usage")
        for name in _flat_values(parsed, "scale"):
            get_scale(str(name))
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
        if not takes_filters(self.verb):
            return
        if "subset" in given and "filters" in given:
            raise UserError("subset= takes a file as it is; give filters= or subset=, not both", code="option-conflict")
        names = [str(name) for name in _flat_values(parsed, "filters")]
        for name in names:
            get_chooser(name)
        for override in parsed:
            value = override.value() if override.key_or_group == "filters" else None
            if isinstance(value, list) and len(set(map(str, value))) != len(value):
                raise UserError(f"filters={[str(name) for name in value]} names a filter twice", code="option-value")
        selected = names or _default_filters(self.verb)
        for key in given:
            if key.startswith("filters.") and key.split(".")[1] not in selected:
                raise UserError(
                    f"{key} is given, but the filters are {selected}; add {key.split('.')[1]!r} to filters=",
                    code="option-conflict",
                )

    def _compose_and_run(self) -> int:
        from hydra.core.config_store import ConfigStore

        from benchmark.cli.options import VERBS
        from benchmark.selection.rules import filter_defaults, known_strategies

        store = ConfigStore.instance()
        store.store(name=f"{self.verb}_options", node=VERBS[self.verb])
        for strategy in known_strategies():
            # `selected` tells what a job uses from what a sweep merely has options for.
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
        return EXIT_SWEEP if sweep.outcome(handles) else 0

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
            raise UserError(_hydra_sentence(error), code="option-value") from error
        finally:
            sys.argv = arguments
            if environment is None:
                del os.environ["HYDRA_FULL_ERROR"]
            else:
                os.environ["HYDRA_FULL_ERROR"] = environment


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
            raise UserError(_hydra_sentence(error), code="option-value") from error
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
        from benchmark.cli import verbs
        from benchmark.registry import load_strategies

        load_strategies(self.plugins)  # a process of its own knows none yet
        verbs.FUNCTIONS[self.verb](self._plain(config), ["winnow", self.verb, *self.arguments])
        return 0


def _by_signal(ending: Ending) -> bool:
    return ending.exit_code > EXIT_SIGNAL


def _flat_values(parsed: list[Any], key: str) -> list[Any]:
    """Return the single values that the overrides give a key, lists and sweeps taken apart."""

    def flatten(value: Any) -> list[Any]:
        if isinstance(value, list | tuple):
            return [inner for item in value for inner in flatten(item)]
        if hasattr(value, "list"):  # a ChoiceSweep
            return flatten(value.list)
        return [value.text if hasattr(value, "text") else value]

    return [item for override in parsed if override.key_or_group == key for item in flatten(override.value())]


def _default_filters(verb: str) -> list[str]:
    from omegaconf import OmegaConf

    defaults = OmegaConf.load(CONF_DIR / f"{verb}.yaml").defaults
    return next((list(item.filters) for item in defaults if "filters" in item), [])


def _verb_help(verb: str) -> str:
    from benchmark.cli.options import VERBS, describe_options, takes_filters
    from benchmark.selection.rules import known_strategies

    lines = [(VERBS[verb].__doc__ or "").strip(), "", f"  winnow {verb} key=value ...      -m sweeps over a,b,c", ""]
    width = max(len(name) for name, _, _ in describe_options(verb))
    for name, default, text in describe_options(verb):
        lines.append(f"  {name:<{width}} {text}" + (f" (default: {default})" if default else ""))
    if takes_filters(verb):
        default = ",".join(_default_filters(verb))
        lines += [
            f"  {'filters':<{width}} the strategy, one name or a list of them (default: {default})",
            "",
            "Filters:",
        ]
        lines += _filter_lines(known_strategies())
    return "\n".join(lines) + "\n"


def _filter_lines(strategies: Sequence[Strategy]) -> list[str]:
    from benchmark.selection.assets import default_place
    from benchmark.selection.rules import filter_defaults

    lines = []
    for strategy in strategies:
        # A signal takes the options of the filter that uses it.
        prefix = "" if strategy.kind == "signal" else f"filters.{strategy.name}."
        kind = strategy.kind + (", reference: cannot be submitted" if strategy.reference else "")
        lines += [f"  {strategy.name} ({kind}): {strategy.summary}", f"      {strategy.paper}"]
        if strategy.has_cut:
            cut = (
                f"fraction={strategy.fraction:g}"
                if strategy.fraction is not None
                else f"threshold={strategy.threshold:g}"
            )
            lines.append(f"      filters.{strategy.name}.fraction, .threshold: number (declared cut: {cut})")
        for option in strategy.options.values():
            default = "required" if option.is_required else repr(filter_defaults(strategy)[option.name])
            expected = option.type_name
            if option.name in strategy.assets:
                expected = "file or list of files" if option.is_list else "file"
                default = default_place(strategy.assets[option.name])
            lines.append(f"      {prefix}{option.name}: {expected} (default: {default})")
    return lines


# --- Ordinary verbs ------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """argparse whose complaints are one sentence like ours."""

    def error(self, message: str) -> Any:
        raise UserError(f"{message}; see {self.prog} --help", code="usage")


def _pool(arguments: list[str]) -> int:
    parser = _Parser(prog="winnow pool", description="Make pools, index them and look them over.")
    actions = parser.add_subparsers(dest="action", required=True, parser_class=_Parser)
    build = actions.add_parser("build", help="draw an embedded pool, its evaluation sets and its index")
    build.add_argument("--scale", default="nano", help="nano or pico (default: %(default)s)")
    build.add_argument("--pool-seed", type=int, default=0, help="which drawing (default: %(default)s)")
    build.add_argument("--pool-dir", help="the folder (default: pools/<scale>, for seed 0)")
    index = _pool_action(
        actions,
        "index",
        "find every sample in the tars, and what is damaged; a second call reads what has changed",
        "winnow pool index pools/mine --workers 8",
        "Exit code 0: whole; 1: some tar is damaged, or something is left out: tars in folders, compressed or under "
        "other\nnames, samples whose names hold dots. What can be read is indexed all the same.",
    )
    index.add_argument("pool_dir", metavar="DIR", help="the pool")
    index.add_argument("--hash-images", action="store_true", help="hash images whose json names no sha256")
    index.add_argument(
        "--strict",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="end with 1 where a tar is damaged or something is left out (default), or with 0",
    )
    check = _pool_action(
        actions,
        "check",
        "look a pool over: fingerprint, coverage, columns, damage, which filters can run",
        "winnow pool check pools/mine --format json",
        "Exit code 1: repeated or malformed uids, damage, .npz files or columns that do not fit; else 0.",
    )
    check.add_argument("pool_dir", metavar="DIR", help="the pool")
    check.add_argument("--format", default="text", choices=["text", "json"])
    check.add_argument("--plugins", nargs="+", default=[], metavar="FILE", help="your own files with filters")
    sample = _pool_action(
        actions,
        "sample",
        "cut out a sub-pool: the same rows for the same seed, whatever the pool's files; tars are referred to",
        "winnow pool sample pools/small --size 100000 --seed 0 --out pools/tiny",
        "More rows with the same seed hold fewer. Evaluation sets are not taken along: give eval_dir= later.",
    )
    sample.add_argument("pool_dir", metavar="DIR", help="the pool")
    sample.add_argument("--size", type=int, required=True, metavar="N", help="how many rows")
    sample.add_argument("--seed", type=int, default=0, metavar="S", help="which drawing (default: %(default)s)")
    sample.add_argument("--out", required=True, metavar="DIR", help="the sub-pool, a new folder")
    take = _pool_action(
        actions,
        "import",
        "make a pool of somebody else's tars, and of their parquet files or of the tars alone; nothing is copied",
        "winnow pool import --shards data/tars --metadata data/meta --column text=caption --key-column key --out mine",
        "Uids are the tars' where their json names some, else made from image hash and caption. A row finds its sample "
        "by --uid-column,\nby --key-column, or by its columns sha256 and text. Exit code 2, nothing is made: tars are "
        "damaged or left out,\nor dots in names hide members (go on by --no-strict); or no sample can be used.",
    )
    take.add_argument(
        "--shards",
        required=True,
        nargs="+",
        metavar="PATH",
        help="the tars (jpg, txt, perhaps json): their folder, a folder of such folders, patterns or files, such as "
        "'tars/{0000..0127}.tar' or 'tars/**/*.tar'",
    )
    take.add_argument(
        "--metadata", nargs="+", default=[], metavar="PATH", help="parquet files or folders (default: from the tars)"
    )
    take.add_argument("--out", required=True, metavar="DIR", help="the pool, a new folder")
    take.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NEW=OLD",
        help="what a column is called there; without --metadata a field of the json (several times); text=FIELD where "
        "the captions stand in the json",
    )
    take.add_argument("--uid-column", metavar="C", help="the column of uids; the tars' json name the same ones")
    take.add_argument("--key-column", metavar="C", help="the column of the samples' keys in the tars")
    take.add_argument(
        "--strict",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="make nothing where tars are damaged or left out or dots in names hide members (default), or go on",
    )
    for action in (build, index, check, take):
        action.add_argument("--workers", type=int, default=None, help="processes (default: one per core)")
    options = parser.parse_args(arguments)
    if getattr(options, "workers", None) is not None and options.workers < 0:
        raise UserError(f"--workers {options.workers} is not a whole number from 0 on", code="option-type")
    act: dict[str, Callable[[argparse.Namespace], int]] = {
        "build": _pool_build,
        "index": _pool_index,
        "check": _pool_check,
        "sample": _pool_sample,
        "import": _pool_import,
    }
    return act[options.action](options)


def _pool_action(actions: Any, name: str, summary: str, example: str, more: str) -> _Parser:
    parser: _Parser = actions.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.\n\n  {example}",
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _pool_build(options: argparse.Namespace) -> int:
    from benchmark.cli.options import scale_and_pool_dir
    from benchmark.cli.verbs import build_embedded_pool

    scale, folder, seed = scale_and_pool_dir(vars(options))
    build_embedded_pool(scale, folder, seed, options.workers)
    return 0


def _pool_index(options: argparse.Namespace) -> int:
    from benchmark.pool.index_report import index_pool
    from benchmark.runtime.paths import as_location

    report = index_pool(as_location(options.pool_dir), workers=options.workers, hash_images=options.hash_images)
    print("\n".join(report.lines()))
    return 0 if report.is_whole or not options.strict else EXIT_PROBLEMS


def _pool_check(options: argparse.Namespace) -> int:
    from benchmark.pool.check import check_pool
    from benchmark.pool.pool import Pool
    from benchmark.registry import load_strategies
    from benchmark.runtime.paths import as_location
    from benchmark.selection.runnable import filter_lines, filters_of

    load_strategies(options.plugins)
    report = check_pool(as_location(options.pool_dir), workers=options.workers)
    filters = filters_of(Pool(as_location(options.pool_dir), strict=False))
    if options.format == "json":
        print(json.dumps({**report.as_json(), "filters": filters}, indent=2, ensure_ascii=False))
    else:
        print("\n".join(report.lines(filter_lines(filters))))
    return EXIT_PROBLEMS if report.problems else 0


def _pool_sample(options: argparse.Namespace) -> int:
    from benchmark.pool.folder import as_out_dir
    from benchmark.pool.sampling import sample_pool
    from benchmark.runtime.paths import as_location

    pool_dir, out_dir = as_location(options.pool_dir), as_out_dir(options.out)
    result = sample_pool(pool_dir, out_dir, size=options.size, seed=options.seed).result
    short = f", {options.size - result['rows']:,} fewer than asked for: a uid is drawn with all its rows"
    say(
        f"{out_dir}: {result['rows']:,} rows{short if result['rows'] < options.size else ''}, "
        f"{result['present']:,} samples with image and caption"
    )
    if (pool_dir / "eval").exists():
        say(f"evaluation sets: eval_dir={pool_dir / 'eval'}")
    return 0


def _pool_import(options: argparse.Namespace) -> int:
    from benchmark.pool.folder import as_out_dir
    from benchmark.pool.importing import import_pool
    from benchmark.pool.pool import Pool
    from benchmark.registry import load_strategies
    from benchmark.runtime.paths import as_location
    from benchmark.selection.runnable import filter_lines, filters_of

    columns: dict[str, str] = {}
    for text in options.column:
        new, equals, old = text.partition("=")
        if not (new and equals and old) or new in columns:
            raise UserError(
                f"--column {text} is not NEW=OLD, such as text=caption, with each NEW once", code="option-syntax"
            )
        columns[new] = old
    load_strategies()
    out_dir = as_out_dir(options.out)
    report = import_pool(
        out_dir,
        shards=[as_location(text) for text in options.shards],
        metadata=[as_location(text) for text in options.metadata],
        columns=columns,
        uid_column=options.uid_column,
        key_column=options.key_column,
        strict=options.strict,
        workers=options.workers,
    )
    print("\n".join([str(out_dir), *report.lines(), *filter_lines(filters_of(Pool(out_dir, strict=False)))]))
    return 0


SUBSET_HELP = """\
Look at subset files, combine and compare them. A subset is a multiset: a uid may have several copies.

  and A B ...       of each uid the least copies that any file has
  or A B ...        of each uid the most copies that any file has
  minus A B ...     A's copies of each uid, less those of every B, never below 0
  restrict A B ...  A with all its copies, for uids that every B has at all
  overlap A B ...   for every two files, copies counted: what they share (of each uid the least copies), what only one
                    has (the rest), and the Jaccard index of copies (sum of the least copies / sum of the most) and of
                    uids (each counted once, as in a report); for more than two files also what all of them share
  info FILE         how many uids and copies there are

Files are .npy as DataComp writes them, raw pairs of 8-byte integers, or .parquet with a column uid (a copy for each
row). The first two are read in blocks: their size is no matter.
"""


def _entry_file(path: Path) -> Path:
    """Return the file of an entry that is named by it or by its experiment's folder."""
    file = path / "entry.json" if path.is_dir() else path
    if not file.is_file():
        raise NotFoundError(
            f"--entry {path}: there is no {file}; `winnow evaluate` writes entry.json into an experiment's folder",
            code="not-found",
        )
    return file


def _subset(arguments: list[str]) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="winnow subset", description=SUBSET_HELP, formatter_class=raw)
    actions = parser.add_subparsers(dest="action", required=True, parser_class=_Parser, metavar="ACTION")
    actions.add_parser("info").add_argument("file")
    for name in ("and", "or", "minus", "restrict", "overlap"):
        action = actions.add_parser(name, description=SUBSET_HELP, formatter_class=raw)
        action.add_argument("file", metavar="A")
        action.add_argument("others", nargs="+", metavar="B")
        if name == "overlap":
            action.add_argument("--format", default="text", choices=["text", "markdown", "csv"])
        else:
            action.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the result goes")
    options = parser.parse_args(arguments)
    from benchmark.pool.subset import SUBSET_RECORD_NAME
    from benchmark.pool.subset_algebra import combine_files, describe_file, overlap_files
    from benchmark.runtime.mirror import local_copy
    from benchmark.runtime.paths import as_location

    given = [options.file, *getattr(options, "others", [])]
    paths = [local_copy(as_location(text), beside=[SUBSET_RECORD_NAME]) for text in given]
    if options.action == "info":
        print("\n".join(describe_file(paths[0])))
    elif options.action == "overlap":
        print(overlap_files(paths, options.format))
    else:
        print("\n".join(combine_files(options.action, paths, options.out)))
    return 0


def _list(arguments: list[str]) -> int:
    parser = _Parser(prog="winnow list", description="List what there is.")
    parser.add_argument("what", choices=["filters", "tasks", "scales", "checkpoints"])
    parser.add_argument("--plugins", nargs="+", default=[], metavar="FILE", help="your own files")
    options = parser.parse_args(arguments)
    from benchmark.registry import BROKEN, SUITES, load_strategies, load_tasks, suite_tasks
    from benchmark.scales import SCALES
    from benchmark.selection.rules import known_signals, known_strategies

    if options.what == "checkpoints":
        from leaderboard.checkpoints import checkpoint_lines, read_checkpoints

        print("\n".join(checkpoint_lines(read_checkpoints())))
    elif options.what == "filters":
        load_strategies(options.plugins)
        print("\n".join(_filter_lines(known_strategies())))
        print("\nSignals, which filters use by signals=[...] and give their own options of the same names:")
        print("\n".join(_filter_lines(known_signals())))
        for broken in BROKEN.values():
            print(f"\ncannot be used: {broken.kind} {broken.name!r} of {broken.path}: {broken.reason}")
    elif options.what == "tasks":
        tasks = load_tasks(options.plugins)
        shown: set[str] = set()  # a task may be in several suites
        for suite in SUITES.values():
            number, verb = len(suite.headline), "makes" if len(suite.headline) == 1 else "make"
            half = f", of which {number} {verb} the average" if suite.development else ""
            total = f"{len(suite.tasks)} task{'' if len(suite.tasks) == 1 else 's'}"
            more = f", and {len(suite.unscored)} without a score" if suite.unscored else ""
            print(f"suite {suite.name} (version {suite.version}): {total}{half}{more}")
            print("\n".join(_task_lines(suite_tasks(suite))))
            shown |= {*suite.tasks, *suite.unscored}
        if others := [task for name, task in tasks.items() if name not in shown]:
            print("in no suite:\n" + "\n".join(_task_lines(others)))
        print("\ntasks= takes names, groups (the last column) of the scale's suite, and suites.")
    else:
        for scale in SCALES.values():
            print(
                f"{scale.name:<8} recipe {scale.recipe}: {scale.model}, {scale.samples_seen:,} samples seen in "
                f"{scale.steps:,} steps of {scale.batch_size}, pool of {scale.pool_size:,}, suite {scale.suite}"
            )
    return 0


def _task_lines(tasks: Sequence[Task]) -> list[str]:
    """Return a line per task: name, title, main metric, groups."""
    rows = [(task.name, task.title, task.main_metric or "-", ", ".join(task.groups)) for task in tasks]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return ["  " + "  ".join(f"{text:<{width}}" for text, width in zip(row, [*widths, 0], strict=True)) for row in rows]


def _leaderboard(arguments: list[str]) -> int:
    parser = _Parser(prog="winnow leaderboard", description="The board.")
    actions = parser.add_subparsers(dest="action", required=True, parser_class=_Parser)
    table = actions.add_parser("table", help="print a board")
    table.add_argument("--tasks", action="store_true", help="a line per task: range over strategies, noise")
    agreement = actions.add_parser("agreement", help="compare a board's order with DataComp's published scores")
    table.add_argument(
        "--entry",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="an experiment's entry.json, or its folder, to stand among them (several times: the first is compared "
        "with all others)",
    )
    compare = actions.add_parser("compare", help="print an evaluation's scores, beside a reference's")
    compare.add_argument("scores", metavar="A", help="a folder with results, eval_results.jsonl, a released checkpoint")
    compare.add_argument("reference", metavar="B", nargs="?", help="the same, to compare A with")
    compare.add_argument("--tasks", action="store_true", help="a line per task")
    compare.add_argument("--suite", help="default: the suite that has most of A's tasks")
    compare.add_argument(
        "--plugins", nargs="+", default=[], metavar="FILE", help="files with your own tasks and suites"
    )
    for action in (table, agreement):
        action.add_argument("--board", default="nano", help="a shipped board's name or a folder (default: nano)")
    compare.add_argument(
        "--board", help="whose entries tell seed noise: a shipped board's name or a folder (default: by A's scale)"
    )
    for action in (table, agreement, compare):
        action.add_argument("--format", default="text", choices=["text", "markdown", "csv"])
    options = parser.parse_args(arguments)
    from benchmark.cli.verbs import board_agreement, board_table, board_tasks

    if options.action == "compare":
        from benchmark.registry import load_tasks
        from leaderboard.score_table import compare_scores

        load_tasks(options.plugins)
        table_of_scores = compare_scores(
            options.scores,
            options.reference,
            suite_name=options.suite,
            style=options.format,
            with_tasks=options.tasks,
            board_name=options.board,
        )
        print(table_of_scores, end="")
    elif options.action == "agreement":
        print(board_agreement(options.board, options.format))
    else:
        show = board_tasks if options.tasks else board_table
        print(show(options.board, [_entry_file(path) for path in options.entry], options.format))
    return 0
