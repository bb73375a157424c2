"""The page of `sepo compare`: the comparison, curves by variant, and the report of the results' runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sepo.evaluation.comparison_report import MeasuredVariant, first_measures, measure_label, measured_variants
from sepo.hosts.llamafactory.compared_runs import RunFiles
from sepo.recipe.comparison import TrainingRun
from sepo.report.charts import Chart
from sepo.report.compared import (
    Cell,
    Log,
    Opening,
    ResultPoint,
    ResultTable,
    curves,
    mean_log,
    result_charts,
    selected_share,
    with_seconds,
)
from sepo.report.drawing import MOST_SUBJECTS
from sepo.report.facts import plain
from sepo.report.files import write_report
from sepo.report.page import charts, page, with_unique_names
from sepo.report.reading import read_subject
from sepo.report.training_charts import SECONDS
from sepo.report.visible import clipped, number, one_line
from sepo.runs.elapsed import training_seconds
from sepo.runs.folder import read_numbers

PAGE = "compare.html"
_TITLE_CHARACTERS, _CELL_CHARACTERS = 200, 600


def write_page(values: Mapping[str, Any], runs: Sequence[TrainingRun], files: RunFiles) -> list[str]:
    """Write the page, if a variant has results.

    The report has at most ``MOST_SUBJECTS`` runs, and so have the curves: the baseline's and the first in the order of
    the file, each with the first seed that has a result.

    Args:
        values: the contents of ``compare.json``.
        runs: the runs of the comparison.
        files: their files.

    Returns:
        The names of the runs in the report; empty if no page was written.
    """
    by_name = {run.name: run for run in runs}
    variants = _evaluated(values)
    # Names of runs are the chosen variant's and the seed's, see TrainingRun.
    chosen = {name: [f"{each['run']}-{seed}" for seed in each["seeds"]] for name, each in variants.items()}
    shown = [by_name[names[0]] for names in list(chosen.values())[:MOST_SUBJECTS]]
    if shown:
        logs = {name: [_log(by_name[run], files) for run in names] for name, names in chosen.items()}
        subjects = with_unique_names([read_subject(files.output(run), name=run.name) for run in shown])
        text = page(subjects, charts(subjects), opening=opening(values, logs)).text
        write_report(files.root / PAGE, text.encode())
    return [run.name for run in shown]


def _evaluated(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variants with results, the baseline first."""
    names = sorted(values["variants"], key=lambda name: name != values["settings"]["baseline"])
    return {name: values["variants"][name] for name in names if values["variants"][name]["seeds"]}


def _log(run: TrainingRun, files: RunFiles) -> Log:
    folder = files.output(run)
    unread: list[str] = []  # the report of the runs has the sentences
    return with_seconds(read_numbers(folder, unread)[0], training_seconds(folder))


def opening(values: Mapping[str, Any], logs: Mapping[str, Sequence[Log]]) -> Opening:
    """Return the beginning of the page: the comparison itself.

    Args:
        values: the contents of ``compare.json``, with at least one result.
        logs: logs of the runs of each variant with results, one for each seed.
    """
    variants, settings, data = _evaluated(values), values["settings"], values["data"]
    means = {name: mean_log(logs[name]) for name in variants}
    shares = {name: share for name in variants if (share := selected_share(means[name])) is not None}
    drawn = list(variants)[:MOST_SUBJECTS]
    names = drawn if len(drawn) == len(variants) else [*drawn, "others"]
    measured = measured_variants(values)
    missing = [name for name, each in variants.items() if name != settings["baseline"] and each["difference"] is None]
    lead = [
        f"{number(data['pairs'])} held-out pairs of {data['dataset']}. Differences are to {settings['baseline']}, "
        f"paired by row; {settings['confidence']:.0%} intervals over rows are in brackets, and a difference is marked "
        "if its interval excludes 0."
    ]
    if missing:
        lead.append(
            f"No difference for {', '.join(map(one_line, missing))}: the rows have other tokens, or the baseline has "
            "no result."
        )
    return Opening(
        title=clipped(f"Comparison of {', '.join(map(one_line, names))}", _TITLE_CHARACTERS),
        lead=" ".join(lead),
        tables=[
            _results(values, variants, measured, shares),
            _measures(values, measured),
            *_choices(values),
        ],
        charts=[
            *curves({one_line(name): means[name] for name in drawn}),
            *(
                chart
                for measure in first_measures(values)
                for chart in _after_training(measure, values, variants, means, shares)
            ),
        ],
        curves=_about_curves(len(drawn), len(variants)),
        failed=[f"{run}: {error}" for each in values["variants"].values() for run, error in each["failed"].items()],
        meanings={
            measure_label(name): meaning
            for name, meaning in values["measures"].items()
            if any(each.measure == name for each in measured)
        },
    )


def _about_curves(drawn: int, variants: int) -> str:
    which = "" if drawn == variants else f" Shown are {drawn} of {variants} variants, in the order of the file."
    return (
        "Metrics of training: a curve is the mean over a variant's seeds, at the steps that all of them logged; points "
        "are evaluations during training, on validation rows. Losses and rewards of different objectives have "
        "different scales. "
        "Seconds are of training, without loading models and scoring rows before it; stages of the host log whole "
        f"seconds.{which}"
    )


def _results(
    values: Mapping[str, Any],
    variants: Mapping[str, Any],
    measured: Sequence[MeasuredVariant],
    shares: Mapping[str, float],
) -> ResultTable:
    first = first_measures(values)
    by = {(each.variant, each.measure): each for each in measured}
    seeds, chooses = len(values["settings"]["seeds"]), values["settings"]["choose_by"]
    columns = ["variant", "seeds"]
    columns += [title for name in first for title in (measure_label(name), "difference", "by seed")]
    columns += ["selected tokens", *(["chosen run"] if chooses else []), "keys"]
    rows = []
    for name, each in values["variants"].items():
        row = [Cell(one_line(name)), Cell(f"{len(each['seeds'])} of {seeds}")]
        for measure in first:
            found = by.get((name, measure))
            row += [Cell("")] * 3 if found is None else [
                Cell(found.mean), _difference(found), Cell(", ".join(filter(None, found.seeds)))
            ]  # fmt: skip
        share = shares.get(name)
        row.append(Cell("" if share is None else f"{100 * share:.3g} %"))
        row += [Cell(one_line(each["run"] or ""))] if chooses else []
        keys = "; ".join(f"{key}: {plain(value)}" for key, value in (each["keys"] or {}).items())
        rows.append([*row, Cell(clipped(keys, _CELL_CHARACTERS))])
    colours = {name: index for index, name in enumerate(list(variants)[:MOST_SUBJECTS])}
    return ResultTable("Results", columns, rows, swatches=[colours.get(name) for name in values["variants"]])


def _difference(found: MeasuredVariant) -> Cell:
    return Cell(found.difference, "≠ 0", "the interval excludes 0") if found.differs else Cell(found.difference)


def _measures(values: Mapping[str, Any], measured: Sequence[MeasuredVariant]) -> ResultTable:
    seeds = [f"seed {seed}" for seed in values["settings"]["seeds"]]
    rows = [
        [
            Cell(measure_label(each.measure)),
            Cell(one_line(each.variant)),
            Cell(each.mean),
            _difference(each),
            *map(Cell, each.seeds),
        ]
        for each in measured
    ]
    return ResultTable("All measures", ["measure", "variant", "mean", "difference", *seeds], rows)


def _choices(values: Mapping[str, Any]) -> list[ResultTable]:
    """Return the table of the choice on validation rows, if there was one."""
    seeds, rows = values["settings"]["seeds"], []
    for name, each in values["variants"].items():
        for run, means in (each["validation"] or {}).items():
            known = [value for value in means.values() if value is not None]
            mean = "" if not known else f"{sum(known) / len(known):.1%}"
            single = ["" if (value := means.get(str(seed))) is None else f"{value:.1%}" for seed in seeds]
            mark = Cell(mean, "chosen", "chosen") if run == each["run"] else Cell(mean)
            rows.append([Cell(one_line(name)), Cell(one_line(run)), mark, *map(Cell, single)])
    if not rows:
        return []
    by = values["settings"]["choose_by"]
    columns = ["variant", "run", by, *(f"seed {seed}" for seed in seeds)]
    return [
        ResultTable("Choice on validation rows", columns, rows, f"For each variant, the run with the highest {by}.")
    ]


def _after_training(
    measure: str,
    values: Mapping[str, Any],
    variants: Mapping[str, Any],
    logs: Mapping[str, Log],
    shares: Mapping[str, float],
) -> list[Chart]:
    means = {name: each["mean"].get(measure) for name, each in variants.items()}
    seconds = {name: [entry[SECONDS] for entry in log if SECONDS in entry] for name, log in logs.items()}
    return result_charts(
        measure.replace("_", "-"),
        "right answers" if measure == "right" else measure_label(measure),
        {one_line(name): ResultPoint(mean["value"], mean["low"], mean["high"]) for name, mean in means.items() if mean},
        shares={one_line(name): share for name, share in shares.items()},
        seconds={one_line(name): max(found) for name, found in seconds.items() if found},
        baseline=one_line(values["settings"]["baseline"]),
    )
