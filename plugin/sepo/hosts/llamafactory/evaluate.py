"""`sepo eval`: evaluation of a recipe's policy on held-out pairs, with the host's models, templates and data."""

from __future__ import annotations

import functools
import tempfile
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

import sepo.hosts.llamafactory.scoring_models  # noqa: F401
from sepo.console import print_lines
from sepo.errors import SepoError, first_line
from sepo.evaluation.benchmarks import read_questions
from sepo.evaluation.generation import Decoding
from sepo.evaluation.prompts import ChatFormat, PromptSet, check_room, question_prompts
from sepo.evaluation.report import print_result
from sepo.evaluation.result import EvaluatedPolicy, claimed_folder, result_values, write_results
from sepo.evaluation.run import EvaluationSettings, HeldOut, PolicyResult, evaluate_policy
from sepo.forward.sequences import DEFAULT_BATCH_TOKENS, ScoredSequence, ScoringModel
from sepo.hosts.llamafactory.bench.machine import versions
from sepo.hosts.llamafactory.evaluate_recipe import EvaluationRecipe, evaluation_recipe
from sepo.hosts.llamafactory.evaluated_rows import (
    chat_format_of,
    check_least,
    evaluated_data,
    heldout_prompts,
    require_one_process,
    rows_of,
)
from sepo.hosts.llamafactory.expected_answers import JudgeRequest, check_expected
from sepo.hosts.llamafactory.recipe import get_train_args
from sepo.hosts.llamafactory.workflow import PreparedData
from sepo.recipe.model_specs import ModelSpec, OracleSpec
from sepo.scoring.hub import hub_access
from sepo.scoring.model_files import check_tokenizers, spec_files
from sepo.scoring.models import give_memory_back, load_scoring_model, load_scoring_models
from sepo.scoring.stored_columns import row_sequences
from sepo.selection import SIDES

_ROWS = 1000


@dataclass(frozen=True)
class Request:
    """Options of an evaluation besides the recipe.

    Args:
        generate: number of prompts of the held-out pairs for which responses are generated; 0 for none.
        max_new_tokens: maximum number of generated tokens; None for the recipe's value, or 256 if it has none.
        temperature: sampling temperature, 0 for greedy; None for the recipe's value, or 0 if it has none.
        seed: seed of sampling, of the draw of prompts and of the confidence intervals.
        questions: files with the questions of benchmarks.
        batch_tokens: tokens per batch.
        before: whether the policy before training is measured, too.
        output: directory for the results, or None for one in the working directory.
        name: name of the policy for judges; None for the name of its directory.
        judge: judge of the answers to the prompts of held-out pairs; None without one.
    """

    generate: int = 0
    max_new_tokens: int | None = None
    temperature: float | None = None
    seed: int = 0
    questions: tuple[Path, ...] = ()
    batch_tokens: int = DEFAULT_BATCH_TOKENS
    before: bool = False
    output: Path | None = None
    name: str | None = None
    judge: JudgeRequest | None = None


def evaluate(recipe_file: Path, overrides: Sequence[str] = (), *, request: Request) -> dict[str, Any]:
    """Evaluate a recipe's policy, print the table and write the results.

    Args:
        recipe_file: a recipe for training or evaluation.
        overrides: ``key=value`` words.
        request: the options of the evaluation.

    Returns:
        The content of ``eval.json``; see ``sepo.evaluation.fields``.

    Raises:
        SepoError: the recipe, the data, the models or the request is invalid.
    """
    _check(request)
    recipe = evaluation_recipe(recipe_file, overrides)
    evaluation = evaluate_recipe(recipe, request=request)
    print_result(evaluation.values)
    print_lines(f"written: {path}" for path in evaluation.written)
    return evaluation.values


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Args:
        values: the content of ``eval.json``.
        policies: evaluated policies by role.
        heldout: the pairs.
        written: the files and directories that were written.
    """

    values: dict[str, Any]
    policies: Mapping[str, EvaluatedPolicy]
    heldout: HeldOut
    written: Sequence[Path]


@dataclass(frozen=True)
class _Prepared:
    """What an evaluation reads besides the models.

    Args:
        settings: settings of the evaluation.
        arguments: the host's argument objects.
        data: the tokenized data.
        rows: the evaluated rows.
        chat_format: template and tokenizer of the policy.
        prompts: the prompts that are answered.
    """

    settings: EvaluationSettings
    arguments: Any
    data: PreparedData
    rows: Dataset
    chat_format: ChatFormat
    prompts: list[PromptSet]


def _prepared(recipe: EvaluationRecipe, request: Request) -> _Prepared:
    settings = _settings(recipe, request)
    benchmarks = [read_questions(path) for path in request.questions]
    names = [benchmark.name for benchmark, _ in benchmarks]
    if len(set(names)) < len(names):
        raise SepoError(f"--questions names two files of {max(names, key=names.count)}; evaluate one at a time.")
    print_lines(recipe.notes)
    with tempfile.TemporaryDirectory(prefix="sepo-eval-") as folder:
        arguments = get_train_args({**recipe.host, "output_dir": folder})
        data = evaluated_data(arguments, judge=settings.judge, column=request.judge.column if request.judge else "")
    _check_models(recipe, data, arguments[0])
    rows = rows_of(data, recipe.part)
    chat_format = chat_format_of(data.tokenizer, data.template, recipe.policy, arguments[0])
    prompts = []
    if request.generate:
        prompts.append(heldout_prompts(rows, recipe.dataset, most=request.generate, seed=request.seed))
    if request.judge is not None:
        check_expected(prompts[0], request.judge.column)
    prompts += [
        question_prompts(benchmark, questions, dataset=path.name)
        for path, (benchmark, questions) in zip(request.questions, benchmarks, strict=True)
    ]
    for each in prompts:
        check_room(each, chat_format, settings.decoding)
    return _Prepared(settings, arguments, data, rows, chat_format, prompts)


def check_evaluation(recipe: EvaluationRecipe, *, request: Request) -> int:
    """Read the rows and prompts of an evaluation without loading a model, so that it cannot fail on these later.

    Args:
        recipe: the recipe; its policy may be the model that training starts from.
        request: the options of the evaluation.

    Returns:
        The number of pairs.

    Raises:
        SepoError: the data or the request is invalid.
    """
    return len(_prepared(recipe, request).rows)


def evaluate_recipe(recipe: EvaluationRecipe, *, request: Request) -> Evaluation:
    """Evaluate the policy of a recipe that was read, and write the results.

    Args:
        recipe: the recipe.
        request: the options of the evaluation.

    Raises:
        SepoError: the data, the models or the request is invalid.
    """
    policies = _policies(recipe, request)
    prepared = _prepared(recipe, request)
    settings, rows, prompts, arguments = prepared.settings, prepared.rows, prepared.prompts, prepared.arguments
    folder_for_results = claimed_folder(request.output)
    heldout = _heldout(rows, recipe.dataset)
    evaluated = functools.partial(
        evaluate_policy, heldout=heldout, prompts=prompts, chat_format=prepared.chat_format, settings=settings
    )
    measured = {
        role: _measured(name, spec, recipe.reference, functools.partial(evaluated, name=role), arguments)
        for role, (name, spec) in policies.items()
    }
    values = result_values(
        measured,
        reference=None if recipe.reference is None else (recipe.reference_key, recipe.reference),
        data={
            "dataset": recipe.dataset,
            "part": recipe.part,
            "pairs": len(rows),
            "template": arguments[1].template,
            "cutoff_len": arguments[1].cutoff_len,
        },
        prompts=prompts,
        settings=settings,
        versions=versions(),
        judge=None if request.judge is None else request.judge.values(),
    )
    return Evaluation(values, measured, heldout, write_results(folder_for_results, values, measured, prompts))


def _check(request: Request) -> None:
    require_one_process("an evaluation")
    check_least(
        {
            "--generate": (request.generate, 0),
            "--seed": (request.seed, 0),
            "--batch-tokens": (request.batch_tokens, 1),
        }
    )
    if request.judge is not None and not request.generate:
        raise SepoError(
            f"--judge {request.judge.name} judges generated answers to the prompts of the held-out pairs, and "
            "--generate is 0; add --generate N."
        )
    if request.name is not None and (
        not request.name or set(request.name) & set('/\\:*?"<>|') or request.name[0] == "."
    ):
        raise SepoError(f"--name is {request.name!r}; it is used in file names: use letters, digits and -_. only.")


def _policies(recipe: EvaluationRecipe, request: Request) -> dict[str, tuple[str, ModelSpec]]:
    """Return the name for judges and the model by role, in the order of measurement."""
    folder = Path((recipe.policy.model, *recipe.policy.adapters)[-1])
    name = request.name or folder.expanduser().resolve().name
    found = {"after": (name, recipe.policy)}
    if not request.before:
        return found
    if recipe.start is None:
        raise SepoError(
            "--before needs the policy before training, but the recipe has neither an adapter to disable nor a "
            "ref_model; set ref_model=DIRECTORY."
        )
    return {"before": (f"{name}-before", recipe.start), **found}


def _settings(recipe: EvaluationRecipe, request: Request) -> EvaluationSettings:
    options = {"max_new_tokens": request.max_new_tokens, "temperature": request.temperature}
    given = {**recipe.decoding, **{name: value for name, value in options.items() if value is not None}}
    judge = None if request.judge is None else request.judge.judge()
    return EvaluationSettings(Decoding(**given, seed=request.seed), request.seed, request.batch_tokens, judge)


def _check_models(recipe: EvaluationRecipe, data: PreparedData, model_args: Any) -> None:
    access = hub_access(model_args)
    for spec in (recipe.policy, recipe.start, recipe.reference):
        if spec is not None:
            other = (spec.model, spec.revision) != (recipe.policy.model, recipe.policy.revision)
            key = "ref_model" if other else "model_name_or_path"
            spec_files(spec, key=key, access=access)
            if other:
                check_tokenizers(data.tokenizer, spec, key=key, access=access)


def _heldout(rows: Dataset, name: str) -> HeldOut:
    chosen: list[ScoredSequence] = []
    rejected: list[ScoredSequence] = []
    tokens = rows.select_columns([f"{side}_{what}" for side in SIDES for what in ("input_ids", "labels")])
    for start in range(0, len(rows), _ROWS):
        # Four bytes per token; a list of Python integers would take about forty.
        found = [
            ScoredSequence(array("i", sequence.input_ids), sequence.response_start)
            for sequence in row_sequences(tokens[start : start + _ROWS])
        ]
        chosen += found[: len(found) // 2]
        rejected += found[len(found) // 2 :]
    return HeldOut(name, chosen, rejected)


def _measured(
    name: str, spec: ModelSpec, reference: ModelSpec | None, evaluated: Callable[..., PolicyResult], arguments: Any
) -> EvaluatedPolicy:
    """Load a policy and its reference, measure, and free them; weights are shared if only an adapter differs."""
    started = time.monotonic()
    where: dict[str, Any] = {"model_args": arguments[0], "device": arguments[2].device}
    try:
        if reference is None or reference == spec:
            policy = load_scoring_model(spec, **where)
            other = None if reference is None else policy
        else:
            policy, other = load_scoring_models(OracleSpec(spec, reference), **where)
        loaded = time.monotonic() - started
        measured = EvaluatedPolicy(name, spec, _dtype(policy), evaluated(policy, reference=other), loaded)
    except torch.OutOfMemoryError as error:
        raise SepoError(
            f"out of memory: {first_line(error)} Lower --batch-tokens; it does not change the results."
        ) from error
    del policy, other
    give_memory_back()
    return measured


def _dtype(model: ScoringModel) -> str:
    floating = (each.dtype for each in model.model.parameters() if each.is_floating_point())
    return "+".join(sorted({str(dtype).removeprefix("torch.") for dtype in floating}))
