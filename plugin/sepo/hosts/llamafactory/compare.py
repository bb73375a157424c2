"""`sepo compare`: variants of a recipe trained with several seeds and evaluated on the same held-out rows."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from sepo import __version__
from sepo.console import print_lines, print_table
from sepo.errors import SepoError
from sepo.evaluation.comparison import (
    MEASURES,
    Measured,
    best,
    paired_difference,
    row_measures,
    rows_digest,
    run_means,
    seed_mean,
)
from sepo.evaluation.comparison_report import print_comparison
from sepo.evaluation.estimates import RESAMPLES
from sepo.evaluation.result import HELDOUT
from sepo.files import write_whole
from sepo.hosts.llamafactory.checks import check_datasets, check_names
from sepo.hosts.llamafactory.child_runs import changes
from sepo.hosts.llamafactory.compare_page import PAGE, write_page
from sepo.hosts.llamafactory.compared_oracle import ComparedOracle, check_oracle, with_oracle
from sepo.hosts.llamafactory.compared_runs import NamedRun, RunFiles, is_finished, reported, train_run, training_seconds
from sepo.hosts.llamafactory.evaluate import Request, check_evaluation, evaluate_recipe
from sepo.hosts.llamafactory.evaluate_recipe import EVALUATION, resolved_evaluation, trained_model
from sepo.hosts.llamafactory.evaluated_rows import require_one_process
from sepo.hosts.llamafactory.expected_answers import JudgeRequest
from sepo.hosts.llamafactory.recipe import check_recipe, host_keys
from sepo.intervals import CONFIDENCE
from sepo.recipe.comparison import Comparison, TrainingRun, Variant, read_comparison, uses_oracle
from sepo.recipe.keys import unknown_key
from sepo.recipe.rto import RtoSettings
from sepo.recipe.settings import RunSettings
from sepo.recipe.stage_names import RTO
from sepo.redaction import redacted

RESULT, TIMES = "compare.json", "compare_times.json"
_ROWS = "rows.json"
_EVALUATED = (
    "model_revision", "template", "cutoff_len", "dataset_dir", "max_samples", "eval_dataset", "dataset", "val_size",
    "ref_model", "ref_model_revision", "ref_model_adapters", "ref_model_adapters_revision", "max_new_tokens",
    "temperature", "bf16", "fp16", "pure_bf16", "quantization_bit",
)  # fmt: skip
"""Keys of a recipe that determine its evaluation."""


def compare(recipe: Mapping[str, Any], *, environment: Mapping[str, str], dry_run: bool = False) -> int:
    """Train what is not finished, evaluate it, print the comparison and write ``compare.json``.

    Args:
        recipe: keys and values of the file of the comparison.
        environment: environment of the processes that train.
        dry_run: only print what would run.

    Returns:
        The exit status: 1 if a run, or a step of the oracle, failed.

    Raises:
        SepoError: the file or a variant is invalid, or what an earlier call left does not fit to it.
    """
    require_one_process("a comparison")
    comparison, oracle = with_oracle(read_comparison(recipe))
    runs, files = comparison.runs(), RunFiles(Path(comparison.output))
    if oracle is not None:
        check_oracle(oracle, comparison)
        oracle.finished()
    settings = check_variants(comparison, runs, oracle)
    finished = {run.name for run in runs if is_finished(run, files)}
    for part in _parts(comparison):
        for run in runs:
            _kept_rows(run, part, comparison, files)
        _check_rows(runs[0], part, comparison)
    if dry_run:
        print_plan(comparison, runs, finished, settings, files, oracle)
        return 0
    errors = _train(runs, finished, files, environment, oracle)
    values = _results(comparison, runs, errors, files)
    write_whole(files.root / RESULT, json.dumps(values, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    times = {} if oracle is None else training_seconds(oracle.steps, oracle.files)
    write_whole(files.root / TIMES, json.dumps({**times, **training_seconds(runs, files)}, indent=1) + "\n")
    print_comparison(values)
    shown = write_page(values, runs, files)
    print_lines(f"written: {files.root / name}" for name in (RESULT, TIMES))
    if shown:
        print_lines([f"written: {files.root / PAGE} (training of {', '.join(shown)})"])
    return 1 if errors else 0


def check_variants(
    comparison: Comparison, runs: Sequence[TrainingRun], oracle: ComparedOracle | None
) -> dict[str, RunSettings | None]:
    """Check all variants, the judge and the data before anything runs.

    Args:
        comparison: the comparison.
        runs: its runs.
        oracle: the oracle that it trains, or None.

    Returns:
        The resolved settings by variant; None for a stage of the host.

    Raises:
        SepoError: naming the variant.
    """
    _judge(comparison)
    known = host_keys()
    made_earlier = (lambda name: False) if oracle is None else oracle.makes
    settings: dict[str, RunSettings | None] = {}
    for run in runs:
        if run.variant.name in settings:
            continue
        try:
            if not run.recipe.get("model_name_or_path"):
                raise SepoError("model_name_or_path is missing; set it on top.")
            _, found = check_recipe(run.recipe, download=False, made_earlier=made_earlier)
            if isinstance(found, RtoSettings):
                raise SepoError(
                    f"stage is {RTO}, and sepo compare trains on pairs; train it with sepo train, and measure it with "
                    "sepo eval on the same held-out pairs."
                )
            if found is None:
                for name in run.recipe:
                    if name not in known:
                        raise SepoError(unknown_key(name, known))
            check_names(run.recipe, found, made_earlier=made_earlier)
            for part in _parts(comparison):
                rows = comparison.evaluated_recipe(run, validation=part == "validation")
                check_datasets({**rows, "dataset": None if rows.get("eval_dataset") else rows["dataset"]})
        except SepoError as error:
            raise SepoError(f"variant '{run.variant.name}': {error}") from error
        settings[run.variant.name] = found
    return settings


def _check_rows(run: TrainingRun, part: str, comparison: Comparison) -> None:
    """Read the rows and prompts of the evaluations before anything is trained.

    Raises:
        SepoError: they are invalid.
    """
    recipe = comparison.evaluated_recipe(run, validation=part == "validation")
    start = resolved_evaluation(recipe, recipe, file=Path("recipe"), use=replace(EVALUATION, compares=False))
    check_evaluation(start, request=_options(run, part, comparison))


def _options(run: TrainingRun, part: str, comparison: Comparison, *, output: Path | None = None) -> Request:
    answers = part == "heldout" or comparison.choose_by == "right"
    return Request(
        generate=comparison.generate if answers else 0,
        output=output,
        name=run.name,
        judge=_judge(comparison) if answers else None,
    )


def _judge(comparison: Comparison) -> JudgeRequest | None:
    if comparison.judge is None:
        return None
    if not comparison.expected_column:
        raise SepoError(
            f"judge is {comparison.judge}, but expected_column is missing; set it to the column of the held-out pairs "
            "with the expected answers."
        )
    request = JudgeRequest(comparison.judge, comparison.judge_options, comparison.expected_column)
    request.judge()
    return request


def print_plan(
    comparison: Comparison,
    runs: Sequence[TrainingRun],
    finished: set[str],
    settings: Mapping[str, RunSettings | None],
    files: RunFiles,
    oracle: ComparedOracle | None,
) -> None:
    """Print the oracle's steps, the runs, their memory, what they share, and the time left by the finished runs."""
    from sepo.hosts.llamafactory.plan.report import peak_in_words

    memory = {run.variant.name: peak_in_words(run.recipe) for run in runs if run.seed == comparison.seeds[0]}
    apart = "evaluations are not included"
    if oracle is not None:
        done = oracle.finished()
        if len(done) < len(oracle.steps):
            apart = "evaluations and the oracle are not included"
        print_table(
            f"{len(oracle.steps)} steps for the oracle, before the first run that uses it",
            ["step", "state", "memory"],
            [[step.name, _state(step, step.name in done, oracle.files), peak_in_words(step.recipe)]
             for step in oracle.steps],
            words=2,
        )  # fmt: skip
    print_table(
        f"{len(runs)} runs: {len(comparison.variants)} variants, {len(comparison.seeds)} seeds",
        ["run", "state", "memory"],
        [[run.name, _state(run, run.name in finished, files), memory[run.variant.name]] for run in runs],
        words=2,
    )
    print_lines(_shared_lines(comparison, settings))
    seconds = [each["seconds"] for each in training_seconds(runs, files).values() if not each["resumed"]]
    left = len(runs) - len(finished)
    if left and seconds:
        mean = sum(seconds) / len(seconds)
        print_lines([f"time: {timedelta(seconds=round(left * mean))} for {left} runs, by the {mean:.0f} s of those "
                     f"that are finished ({len(seconds)}); {apart}"])  # fmt: skip
    elif left:
        print_lines(["time: unknown until one run is finished"])


def _state(run: NamedRun, finished: bool, files: RunFiles) -> str:
    return "finished" if finished else "to be resumed" if files.record(run, "started").is_file() else "to be run"


def _shared_lines(comparison: Comparison, settings: Mapping[str, RunSettings | None]) -> list[str]:
    """Return a line for each source of stored values, with the variants that read them."""
    users: dict[str, list[str]] = {}
    for name, found in settings.items():
        if found is None:
            continue
        if found.oracles is not None:
            users.setdefault(f"token scores by {found.oracles.text}", []).append(name)
        if found.prompts_for_rewards and found.token_rewards is not None and found.token_rewards.model is not None:
            users.setdefault(f"token rewards by {found.token_rewards.model.model}", []).append(name)
        if found.precomputed_reference is not None:
            users.setdefault(f"reference {found.precomputed_reference.model.model}, precomputed", []).append(name)
    rows = [f"held-out rows: {comparison.heldout}; baseline: {comparison.baseline}"]
    if comparison.validation:
        rows.append("validation rows: " + ", ".join(f"{name} {value}" for name, value in comparison.validation.items()))
    return rows + [
        f"computed once: {what}, for {len(names)} of {len(settings)} variants" for what, names in users.items()
    ]


def _train(
    runs: Sequence[TrainingRun],
    finished: set[str],
    files: RunFiles,
    environment: Mapping[str, str],
    oracle: ComparedOracle | None,
) -> dict[str, str]:
    """Train the runs that are not finished, and return the errors by name of the run.

    The oracle is trained before the first run that uses it; if it fails, these runs have its error.
    """
    errors: dict[str, str] = {}
    oracle_error = functools.cache(lambda: None if oracle is None else oracle.train(environment=environment))
    for number, run in enumerate(runs, start=1):
        title = f"[{number}/{len(runs)}] {run.name}"
        if run.name in finished:
            print_lines([f"{title}: finished before"])
            continue
        error = oracle_error() if uses_oracle(run.recipe) else None
        if error is None:
            print_lines([f"{title}: training; output in {files.log(run)}"])
            error = train_run(run, files, environment=environment)
        if error is not None:
            errors[run.name] = error
        print_lines([f"{title}: " + ("done" if error is None else f"failed: {error}")])
    return errors


def _parts(comparison: Comparison) -> tuple[str, ...]:
    return ("validation", "heldout") if comparison.choose else ("heldout",)


def _results(
    comparison: Comparison, runs: Sequence[TrainingRun], errors: dict[str, str], files: RunFiles
) -> dict[str, Any]:
    """Evaluate the finished runs, and return the contents of ``compare.json``; errors of evaluations are added."""
    by_variant = {variant.name: [run for run in runs if run.variant == variant] for variant in comparison.variants}
    choices: dict[str, dict[str, Any]] = {}
    chosen: dict[str, Variant | None] = {}
    for group, variants in comparison.groups.items():
        chosen[group] = variants[0]
        if comparison.choose:
            found = {
                variant.name: _measured(by_variant[variant.name], "validation", comparison, errors, files)
                for variant in variants
            }
            chosen[group], choices[group] = _choice(comparison, variants, found)
    measured = {
        group: {} if variant is None else _measured(by_variant[variant.name], "heldout", comparison, errors, files)
        for group, variant in chosen.items()
    }
    baseline = list(measured[comparison.baseline].values())
    some = next((each for found in measured.values() for each in found.values()), None)
    return {
        "schema_version": 1,
        "sepo": __version__,
        "data": {
            "dataset": comparison.heldout,
            "pairs": None if some is None else len(some.rows["accuracy_summed"]),
            "answers": None if some is None else len(some.rows.get("tokens", ())),
            "validation": comparison.validation or None,
        },
        "settings": {
            "seeds": list(comparison.seeds),
            "baseline": comparison.baseline,
            "choose": list(comparison.choose),
            "choose_by": comparison.choose_by if comparison.choose else None,
            "generate": comparison.generate,
            "judge": None if (judge := _judge(comparison)) is None else judge.values(),
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
        },
        "measures": {name: meaning for name, (_, meaning) in MEASURES.items()},
        "variants": {
            group: {
                "run": None if (variant := chosen[group]) is None else variant.name,
                "keys": None if variant is None else redacted(variant.keys),
                "seeds": {str(seed): run_means(each) for seed, each in found.items()},
                "mean": seed_mean(list(found.values())) if found else None,
                "difference": paired_difference(list(found.values()), baseline)
                if found and baseline and group != comparison.baseline
                else None,
                "validation": choices.get(group),
                "failed": {run.name: errors[run.name] for each in comparison.groups[group]
                           for run in by_variant[each.name] if run.name in errors},
            }
            for group, found in measured.items()
        },
    }  # fmt: skip


def _choice(
    comparison: Comparison, variants: Sequence[Variant], found: Mapping[str, Mapping[int, Measured]]
) -> tuple[Variant | None, dict[str, Any]]:
    """Return the variant with the best mean on validation rows, and the means by variant and seed."""
    means = {
        name: {seed: run_means(each).get(comparison.choose_by) for seed, each in measured.items()}
        for name, measured in found.items()
    }
    known = {name: [value for value in seeds.values() if value is not None] for name, seeds in means.items()}
    known = {name: values for name, values in known.items() if values}
    kept = {name: {str(seed): value for seed, value in seeds.items()} for name, seeds in means.items()}
    if not known:
        return None, kept
    name = best(known)
    return next(variant for variant in variants if variant.name == name), kept


def _measured(
    runs: Sequence[TrainingRun], part: str, comparison: Comparison, errors: dict[str, str], files: RunFiles
) -> dict[int, Measured]:
    """Return the measures of the finished runs of a variant by seed; what was evaluated before is read."""
    found = {}
    for run in runs:
        if run.name in errors:
            continue
        try:
            kept = _kept_rows(run, part, comparison, files)
            found[run.seed] = _evaluated(run, part, comparison, files) if kept is None else kept
        except Exception as error:  # the other runs are evaluated in any case
            errors[run.name] = reported(error)
            print_lines([f"{run.name}: evaluation failed: {errors[run.name]}"])
    return found


def _evaluation_folder(run: TrainingRun, part: str, files: RunFiles) -> Path:
    return files.root / "evaluations" / part / run.name


def _request(run: TrainingRun, part: str, comparison: Comparison) -> dict[str, Any]:
    """Return the keys that determine an evaluation besides the policy, as plain JSON."""
    recipe = comparison.evaluated_recipe(run, validation=part == "validation")
    request = {name: recipe[name] for name in _EVALUATED if name in recipe}
    if recipe.get("eval_dataset"):
        request.pop("dataset", None)
    options = _options(run, part, comparison)
    judge = None if options.judge is None else options.judge.values()
    without = {} if comparison.reference_measures else {"reference_measures": False}
    return redacted({**request, **without, "generate": options.generate, "judge": judge})


def _kept_rows(run: TrainingRun, part: str, comparison: Comparison, files: RunFiles) -> Measured | None:
    """Return what an earlier call measured, or None.

    Raises:
        SepoError: it was measured with other settings.
    """
    file = _evaluation_folder(run, part, files) / _ROWS
    if not file.is_file():
        return None
    kept = json.loads(file.read_text(encoding="utf-8"))
    changed = changes(kept["request"], _request(run, part, comparison))
    if changed is not None:
        raise SepoError(
            f"run '{run.name}' was evaluated with other settings ({changed}). Choose another output_dir, or remove "
            f"{files.root / 'evaluations'} to evaluate all runs again."
        )
    return Measured(kept["rows"], kept["digest"])


def _evaluated(run: TrainingRun, part: str, comparison: Comparison, files: RunFiles) -> Measured:
    """Evaluate a run and write its results; ``rows.json`` comes last, so that a directory with it is complete."""
    folder = _evaluation_folder(run, part, files)
    if folder.exists():
        shutil.rmtree(folder)  # of an evaluation that was interrupted
    print_lines([f"{run.name}: evaluation on {'held-out' if part == 'heldout' else part} rows"])
    recipe = comparison.evaluated_recipe(run, validation=part == "validation")
    evaluated = resolved_evaluation(
        recipe, {**recipe, **trained_model(recipe, files.output(run))}, file=files.recipe(run)
    )
    evaluation = evaluate_recipe(
        evaluated if comparison.reference_measures else replace(evaluated, reference=None),
        request=_options(run, part, comparison, output=folder),
    )
    found = Measured(
        row_measures(evaluation.policies["after"].result, answers=HELDOUT), rows_digest(evaluation.heldout)
    )
    kept = {"request": _request(run, part, comparison), "digest": found.digest, "rows": found.rows}
    write_whole(folder / _ROWS, json.dumps(kept, allow_nan=False) + "\n")
    return found
