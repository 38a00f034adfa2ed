"""The report stage: from an experiment's folder to `report/`."""

from __future__ import annotations

from pathlib import Path

from benchmark.experiment.choice import subset_inputs
from benchmark.experiment.folder import ENTRY_NAME, open_experiment, refuse_changed
from benchmark.pool.pool import Pool, planted_path
from benchmark.pool.subset import load_subset
from benchmark.registry import FILTERS_DIR, STRATEGIES
from benchmark.report import row_sample
from benchmark.report.overlaps import comparables, keep_default_subset, metadata_contents, overlaps_with
from benchmark.report.page import PageContents, make_page
from benchmark.report.plots import draw_sheet, plot_curves, plot_histogram, plot_kinds, plot_tasks
from benchmark.report.standing import find_standing
from benchmark.report.survey import Survey, survey_pool
from benchmark.runtime.console import say
from benchmark.runtime.costs import cost
from benchmark.runtime.files import Json, digest, remove_temporary, sha256_of, write_bytes
from benchmark.runtime.locks import locked
from benchmark.runtime.records import Record, read_record, write_record
from benchmark.runtime.storage import has_file
from benchmark.scales import Scale
from benchmark.selection.rule_records import as_recorded, without_sources
from benchmark.selection.rules import ResolvedRule, filter_defaults, make_rule

REPORT_VERSION = 4
REPORT_DIR_NAME = "report"
PAGE_NAME = "index.html"
REPORT_RECORD_NAME = "report.json"


def report_stage(exp_dir: Path, pool: Pool, scale: Scale) -> Path:
    """Make the experiment's report, or reuse the one that is there and fits; return the page's path.

    Raises FileNotFoundError or ValueError where there is no subset, or where it or the entry is not what its record
    says.
    """
    subset_path, record = open_experiment(exp_dir, pool)
    refuse_changed(subset_path, record.result["sha256"])
    standing = find_standing(exp_dir, record, scale)
    compared, skipped = comparables(pool, exp_dir)
    rules, changed_rules = _scoring_rules(record, pool)
    descriptions = _descriptions(record)
    inputs: dict[str, Json] = {
        "subset": record.result["sha256"],
        "filter": record.hash,
        "pool": pool.identify().as_json() if pool.has_images else {"fingerprint": pool.compute_fingerprint()},
        "planted": sha256_of(planted_path(pool)) if has_file(planted_path(pool)) else None,
        "entry": sha256_of(exp_dir / ENTRY_NAME) if (exp_dir / ENTRY_NAME).exists() else None,
        "metadata": metadata_contents(pool, [*rules, *(each.rule for each in compared if each.is_direct)]),
        "board": standing.digest,
        "compared": [each.as_json() for each in compared],
        "scored": [without_sources(rule.as_json()) for rule in rules],
        "descriptions": digest([descriptions, changed_rules]),
    }
    if row_sample.is_sampled(pool):
        inputs["sample"] = row_sample.MAX_ROWS
    report_dir = exp_dir / REPORT_DIR_NAME
    page_path, record_path = report_dir / PAGE_NAME, report_dir / REPORT_RECORD_NAME
    with locked(report_dir):
        remove_temporary(report_dir)
        there = read_record(record_path)
        wanted = Record("report", REPORT_VERSION, inputs, {})
        if there is not None and there.hash == wanted.hash and _has_files(report_dir, there):
            say(f"report: up to date, skipping ({page_path})")
            return page_path
        with cost(exp_dir, "report"):
            # First of all, so that no record ever stands beside another report's files.
            record_path.unlink(missing_ok=True)
            for path in report_dir.glob("*.png"):
                path.unlink()
            subset = load_subset(subset_path)
            survey = survey_pool(pool, subset, rules, is_within=record.inputs["within"] is not None)
            overlaps, unknown, failures = overlaps_with(pool, subset, compared)
            unit = "rows" if survey.num_sampled is None else "rows of the sample"
            histograms = {each.name: plot_histogram(each, unit) for each in survey.histograms if each.num_rows}
            curves = [(each, plot_curves(each)) for each in survey.curves]
            tasks_plot = plot_tasks(standing.tasks) if standing.tasks else None
            page = make_page(
                PageContents(
                    record,
                    descriptions,
                    survey,
                    histograms,
                    curves,
                    overlaps,
                    unknown,
                    skipped | failures,
                    changed_rules,
                    standing,
                    tasks_plot,
                ),
                pool,
            )
            files = _summary_pictures(survey)
            files |= {f"scores-{name}.png": plot for name, plot in histograms.items()}
            for number, (each, plot) in enumerate(curves):
                files[f"fraction-{each.rule}-{number}.png"] = plot
            if tasks_plot is not None:
                files["tasks.png"] = tasks_plot
            files[PAGE_NAME] = page.encode(errors="replace")
            for name, data in files.items():
                write_bytes(report_dir / name, data)
            result: dict[str, Json] = {"files": {name: sha256_of(report_dir / name) for name in files}}
            if survey.num_sampled is not None:
                result["sample"] = {"rows": survey.num_sampled, "of": survey.num_rows}
            write_record(record_path, Record("report", REPORT_VERSION, inputs, result))
            _keep_if_default(pool, record, subset_path)
    say(f"report: {page_path}" + ("" if there is None else f" (regenerated: {_changes(there, wanted)})"))
    return page_path


def _summary_pictures(survey: Survey) -> dict[str, bytes]:
    """Draw what the page shows as tables and grids, for use elsewhere."""
    files = {f"sheet-{sheet.title.lower()}.png": draw_sheet(sheet) for sheet in survey.sheets if sheet.samples}
    planted = next((grouping for grouping in survey.groupings if grouping.is_planted), None)
    if planted is not None:
        files["kinds.png"] = plot_kinds(planted, survey.num_kept / survey.num_rows)
    return files


def _scoring_rules(record: Record, pool: Pool) -> tuple[list[ResolvedRule], dict[str, str]]:
    """Return the experiment's rules with a cut, and why the scores of others cannot be had again."""
    rules, changed = [], {}
    for made in record.inputs["filters"]:
        name = made["name"]
        if made["cut"] is None:
            continue
        if name not in STRATEGIES:
            changed[name] = "its file is not loaded; name it in plugins="
            continue
        try:
            # The record has assets by their hash; they are looked for anew.
            options = {key: value for key, value in made["options"].items() if key not in STRATEGIES[name].assets}
            rule = make_rule(name, {**options, **made["cut"]}).resolve(pool)
            now = as_recorded(rule.as_json(), made)
        except (ValueError, FileNotFoundError) as error:
            changed[name] = str(error)
            continue
        if any(now.get(key) != made.get(key) for key in ("identity", "source")):
            changed[name] = "its file changed after the subset was made"
        elif now["options"] != made["options"]:
            changed[name] = "its assets are not in the usual places"
        elif rule.sees_images and (record.inputs["within"] or not rule.cache_dir.is_dir()):
            changed[name] = "it looks at images, and its values are not cached for all rows"
        else:
            rules.append(rule)
    return rules, changed


def _keep_if_default(pool: Pool, record: Record, subset_path: Path) -> None:
    """Let other experiments' reports know the subset of a shipped strategy that ran alone, with its defaults."""
    names = [made["name"] for made in record.inputs["filters"]]
    strategy = STRATEGIES.get(names[0]) if len(names) == 1 else None
    if strategy is None or strategy.source_path.parent != FILTERS_DIR:
        return
    if any(option.is_required for option in strategy.options.values()):
        return
    rule = make_rule(strategy.name, filter_defaults(strategy)).resolve(pool)
    if record.inputs == as_recorded(subset_inputs(pool, [rule]), record.inputs):
        keep_default_subset(pool, rule, load_subset(subset_path))


def _descriptions(record: Record) -> list[str]:
    """Return the one-line summary of each rule, empty where its file is not loaded."""
    known = [STRATEGIES.get(rule["name"]) for rule in record.inputs["filters"]]
    return ["" if strategy is None else strategy.summary for strategy in known]


def _has_files(report_dir: Path, record: Record) -> bool:
    files: dict[str, str] = record.result["files"]
    return all((report_dir / name).is_file() and sha256_of(report_dir / name) == files[name] for name in files)


def _changes(there: Record, wanted: Record) -> str:
    """Say what changed since a report was made."""
    changed = [key for key, value in wanted.inputs.items() if there.inputs.get(key) != value]
    if there.version != wanted.version:
        changed.append("the report's version")
    return f"{', '.join(changed)} changed" if changed else "its files were changed or lost"
