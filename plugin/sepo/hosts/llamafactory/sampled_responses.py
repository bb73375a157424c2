"""`sepo sample`: responses of a recipe's policy to its prompts, with the host's models, templates and data."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import sepo.hosts.llamafactory.scoring_models  # noqa: F401
from sepo import __version__
from sepo.console import print_lines
from sepo.errors import SepoError, first_line
from sepo.evaluation.generation import Decoding
from sepo.evaluation.prompts import ChatFormat, Prompt, PromptSet, check_room
from sepo.evaluation.report import print_summary
from sepo.evaluation.run import progress
from sepo.evaluation.sample_file import SAMPLES, SampleFile, open_samples
from sepo.evaluation.sample_summary import SampleSummary, sample_summary
from sepo.evaluation.sampling import prompt_ids, sample_responses, sample_row
from sepo.forward.sequences import DEFAULT_BATCH_TOKENS
from sepo.hosts.llamafactory.bench.machine import versions
from sepo.hosts.llamafactory.evaluate_recipe import SAMPLING, EvaluationRecipe, evaluation_recipe
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
from sepo.judges import Judge
from sepo.recipe.model_specs import ModelSpec
from sepo.scoring.hub import hub_access
from sepo.scoring.models import give_memory_back, load_scoring_model, precision
from sepo.scoring.stored_columns import spec_identity

DEFAULT_FOLDER = Path("sample_output")


@dataclass(frozen=True)
class SampleRequest:
    """Options of sampling besides the recipe.

    Args:
        samples: number of responses for each prompt.
        prompts: number of prompts, drawn at random if there are more; None for all.
        max_new_tokens: maximum number of generated tokens; None for the recipe's value, or 256 if it has none.
        temperature: sampling temperature, 0 for greedy; None for the recipe's value, or 1 if it has none.
        top_p: probability of the tokens from which samples are drawn; None for the recipe's value, or 1 if it has none.
        seed: seed of the samples and of the draw of prompts.
        batch_tokens: tokens per batch.
        output: directory of the samples.
        judge: judge of the responses; None without one.
    """

    samples: int = 1
    prompts: int | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int = 0
    batch_tokens: int = DEFAULT_BATCH_TOKENS
    output: Path = DEFAULT_FOLDER
    judge: JudgeRequest | None = None


def sample(recipe_file: Path, overrides: Sequence[str] = (), *, request: SampleRequest) -> SampleSummary:
    """Sample responses of a recipe's policy, write them and print a summary; an interrupted run is continued.

    Args:
        recipe_file: a recipe for training or evaluation, or the output directory of a run.
        overrides: ``key=value`` words.
        request: the options of sampling.

    Raises:
        SepoError: the recipe, the data, the model or the request is invalid, or the directory has other samples.
    """
    require_one_process("sampling")
    check_least(
        {
            "--samples": (request.samples, 1),
            "--prompts": (1 if request.prompts is None else request.prompts, 1),
            "--seed": (request.seed, 0),
            "--batch-tokens": (request.batch_tokens, 1),
        }
    )
    recipe = evaluation_recipe(recipe_file, overrides, use=SAMPLING)
    decoding = _decoding(recipe, request)
    judge = None if request.judge is None else request.judge.judge()
    print_lines(recipe.notes)
    with tempfile.TemporaryDirectory(prefix="sepo-sample-") as folder:
        arguments = get_train_args({**recipe.host, "output_dir": folder})
        data = evaluated_data(arguments, judge=judge, column=request.judge.column if request.judge else "")
    model_args, data_args = arguments[:2]
    rows = rows_of(data, recipe.part)
    prompts = heldout_prompts(rows, recipe.dataset, most=request.prompts, seed=request.seed)
    if request.judge is not None:
        check_expected(prompts, request.judge.column)
    chat_format = chat_format_of(data.tokenizer, data.template, recipe.policy, model_args)
    check_room(prompts, chat_format, decoding)
    dtypes = precision(model_args)
    settings = {
        "model": spec_identity(recipe.policy, key="model_name_or_path", access=hub_access(model_args)),
        "dtype": dtypes.get("infer_dtype", dtypes["compute_dtype"]),
        "prompts": {"number": len(prompts.prompts), "digest": _digest(prompts, chat_format)},
        "samples": request.samples,
        **asdict(decoding),
        "judge": None if request.judge is None else request.judge.values(),
    }
    notes = {
        "policy": recipe.policy.as_dict(),
        "dataset": recipe.dataset,
        "part": recipe.part,
        "template": data_args.template,
        "sepo": __version__,
        "versions": versions(),
    }
    with open_samples(request.output.expanduser(), settings=settings, notes=notes) as file:
        left = [prompt for prompt in prompts.prompts if prompt.question.id not in file.rows]
        if len(left) < len(prompts.prompts):
            done = len(prompts.prompts) - len(left)
            print_lines([f"continued: {done:,} of {len(prompts.prompts):,} prompts are in {request.output} already"])
        if left:
            _sample(recipe.policy, left, chat_format, decoding, judge, request, arguments, file)
        file.sort()
        summary = sample_summary([file.rows[int(prompt.question.id)] for prompt in prompts.prompts], seed=request.seed)
    print_summary(summary, dataset=recipe.dataset)
    print_lines([f"written: {request.output / SAMPLES}"])
    return summary


def _decoding(recipe: EvaluationRecipe, request: SampleRequest) -> Decoding:
    options = {name: getattr(request, name) for name in ("max_new_tokens", "temperature", "top_p")}
    given = {name: value for name, value in options.items() if value is not None}
    decoding = Decoding(**{"temperature": 1.0, **recipe.decoding, **given}, seed=request.seed)
    if request.samples > 1 and not decoding.temperature:
        raise SepoError(
            f"--samples is {request.samples} and the temperature 0, so all responses to a prompt would be equal; set "
            "--temperature above 0, or --samples 1."
        )
    return decoding


def _digest(prompts: PromptSet, chat_format: ChatFormat) -> str:
    """Return a digest of the prompts' rows, tokens, stop tokens and expected answers."""
    digest = hashlib.sha256(repr(sorted(chat_format.stop_ids)).encode())
    for prompt in prompts.prompts:
        digest.update(repr((prompt.question.id, prompt_ids(prompt, chat_format), prompt.expected)).encode())
    return digest.hexdigest()


def _sample(
    policy: ModelSpec,
    prompts: Sequence[Prompt],
    chat_format: ChatFormat,
    decoding: Decoding,
    judge: Judge | None,
    request: SampleRequest,
    arguments: Any,
    file: SampleFile,
) -> None:
    """Load the policy, sample the responses, and add a line for each prompt as soon as it is complete."""
    try:
        model = load_scoring_model(policy, model_args=arguments[0], device=arguments[2].device)
        with progress("responses", len(prompts) * request.samples) as advance:
            found = sample_responses(
                model, prompts, chat_format, samples=request.samples, decoding=decoding,
                batch_tokens=request.batch_tokens, on_batch=advance,
            )  # fmt: skip
            for prompt, responses in found:
                file.add(sample_row(prompt, responses, judge))
    except torch.OutOfMemoryError as error:
        raise SepoError(
            f"out of memory: {first_line(error)} Lower --batch-tokens; it does not change the results, and "
            "the complete prompts are kept."
        ) from error
    del model
    give_memory_back()
