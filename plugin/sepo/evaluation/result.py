"""Output files of an evaluation: ``eval.json``, all generations, and the files for judges."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sepo import __version__
from sepo.errors import SepoError
from sepo.evaluation.benchmarks import BENCHMARKS, Answer, own_question, write_answers, write_questions
from sepo.evaluation.correctness import correctness, correctness_change
from sepo.evaluation.estimates import RESAMPLES
from sepo.evaluation.fields import SCHEMA_VERSION
from sepo.evaluation.preference import preference_change
from sepo.evaluation.prompts import PromptSet
from sepo.evaluation.run import Divergence, EvaluationSettings, PolicyResult, SetResult
from sepo.files import write_whole
from sepo.intervals import CONFIDENCE
from sepo.recipe.model_specs import ModelSpec

HELDOUT = "heldout"
"""Name of the prompts of held-out pairs."""

RESULT, GENERATIONS, JUDGED = "eval.json", "generations.jsonl", "judges"

MEASURES = ("summed", "length_normalized", "reward")
ROLES = ("before", "after")
_DEFAULT_FOLDER = "eval_output"


@dataclass(frozen=True)
class EvaluatedPolicy:
    """An evaluated policy.

    Args:
        name: name of the policy in files and leaderboards.
        spec: the model.
        dtype: data type of its weights.
        result: the results.
        load_seconds: time to load it.
    """

    name: str
    spec: ModelSpec
    dtype: str
    result: PolicyResult
    load_seconds: float


def claimed_folder(path: Path | None) -> Path:
    """Create the directory for the results, before anything is computed that could not be written afterwards.

    Args:
        path: the user's directory, or None for ``eval_output`` in the working directory, with a number appended if that
            has results already.

    Raises:
        SepoError: the user's directory has results already, or the directory cannot be created.
    """
    if path is not None and _taken(path.expanduser()):
        raise SepoError(
            f"-o {path} has results already ({', '.join(_taken(path.expanduser()))}); name another directory."
        )
    folder, number = Path(_DEFAULT_FOLDER) if path is None else path.expanduser(), 1
    while _taken(folder):
        number += 1
        folder = Path(f"{_DEFAULT_FOLDER}-{number}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SepoError(f"-o {folder}: cannot create the directory ({error.strerror}); name another one.") from error
    return folder


def _taken(folder: Path) -> list[str]:
    return [name for name in (RESULT, GENERATIONS, JUDGED) if (folder / name).exists()]


def result_values(
    policies: Mapping[str, EvaluatedPolicy],
    *,
    reference: tuple[str, ModelSpec] | None,
    data: Mapping[str, Any],
    prompts: Sequence[PromptSet],
    settings: EvaluationSettings,
    versions: Mapping[str, str],
    judge: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the contents of ``eval.json``, whose fields are documented in ``sepo.evaluation.fields``.

    Args:
        policies: evaluated policies by role, ``after`` and optionally ``before``.
        reference: the recipe key that names the reference, and the model; or None.
        data: the fields of ``data``.
        prompts: the prompts that were answered.
        settings: all other settings.
        versions: versions of packages.
        judge: name, options and column of the judge; None without one.
    """
    before, after = (policies.get(role) for role in ROLES)
    change = None
    if before and after:
        changed = preference_change(before.result.margins, after.result.margins, seed=settings.seed)
        change = {
            **{name: {what: asdict(value) for what, value in found.items()} for name, found in changed.items()},
            "correct": _correct_change(before, after, seed=settings.seed),
        }
    decoding = settings.decoding
    return {
        "schema_version": SCHEMA_VERSION,
        "sepo": __version__,
        "versions": dict(versions),
        "data": dict(data),
        "settings": {
            "decoding": "sampling" if decoding.temperature else "greedy",
            "temperature": decoding.temperature,
            "max_new_tokens": decoding.max_new_tokens,
            "seed": settings.seed,
            "batch_tokens": settings.batch_tokens,
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "judge": None if judge is None else dict(judge),
        },
        "reference": None if reference is None else {"key": reference[0], **_spec(reference[1])},
        "prompts": {
            each.name: {
                "dataset": each.dataset,
                "prompts": len(each.prompts),
                "answers": sum(len(prompt.question.turns) for prompt in each.prompts),
            }
            for each in prompts
        },
        "policies": {role: _policy(policies[role]) if role in policies else None for role in ROLES},
        "change": change,
    }


def _correct_change(before: EvaluatedPolicy, after: EvaluatedPolicy, *, seed: int) -> dict[str, Any] | None:
    first, second = (
        policy.result.sets[HELDOUT].verdicts if HELDOUT in policy.result.sets else None for policy in (before, after)
    )
    if first is None or second is None:
        return None
    found = correctness_change(first, second, seed=seed)
    return {name: None if value is None else asdict(value) for name, value in found.items()}


def _policy(policy: EvaluatedPolicy) -> dict[str, Any]:
    result = policy.result
    return {
        "name": policy.name,
        "model": _spec(policy.spec),
        "dtype": policy.dtype,
        "preference": {
            name: asdict(result.preference[name]) if name in result.preference else None for name in MEASURES
        },
        "logps": dict(result.mean_logps),
        "kl": None if result.kl is None else {side: _divergence(part) for side, part in result.kl.items()},
        "generations": {name: _set(part) for name, part in result.sets.items()},
        "seconds": {"load": round(policy.load_seconds, 2), **{k: round(v, 2) for k, v in result.seconds.items()}},
    }


def _set(part: SetResult) -> dict[str, Any]:
    values = asdict(part.statistics)
    for name in ("distinct", "repeated"):
        values[name] = {str(n): number for n, number in values[name].items()}
    correct = None
    if part.verdicts is not None:
        correct = {**asdict(correctness(part.verdicts)), "verdicts": [asdict(each) for each in part.verdicts]}
    return {**values, "kl": None if part.kl is None else _divergence(part.kl), "correct": correct}


def _divergence(part: Divergence) -> dict[str, Any]:
    values = asdict(part)
    del values["rows"]
    return values


def _spec(spec: ModelSpec) -> dict[str, Any]:
    return {"model": spec.model, "adapters": list(spec.adapters), "quantization_bit": spec.quantization_bit}


def write_results(
    folder: Path, values: Mapping[str, Any], policies: Mapping[str, EvaluatedPolicy], prompts: Sequence[PromptSet]
) -> list[Path]:
    """Write all output files; ``eval.json`` comes last, so that a directory with it is complete.

    Args:
        folder: directory from ``claimed_folder``.
        values: return value of ``result_values``.
        policies: evaluated policies by role.
        prompts: the prompts that were answered.

    Returns:
        The paths of the files, and of the directory of the files for judges.
    """
    written = []
    if prompts:
        lines = [line for role, policy in policies.items() for line in _generations(role, policy, prompts)]
        write_whole(folder / GENERATIONS, "".join(lines))
        written.append(folder / GENERATIONS)
        now = time.time()
        for each in prompts:
            for policy in policies.values():
                _write_judged(folder / JUDGED, each, policy, now)
        written.append(folder / JUDGED)
    text = json.dumps(values, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    write_whole(folder / RESULT, text)
    return [folder / RESULT, *written]


def _generations(role: str, policy: EvaluatedPolicy, prompts: Sequence[PromptSet]) -> list[str]:
    lines = []
    for each in prompts:
        result = policy.result.sets[each.name]
        for index, (prompt, turns) in enumerate(zip(each.prompts, result.answers, strict=True)):
            for turn, answered in enumerate(turns):
                row: dict[str, Any] = {
                    "policy": role,
                    "prompts": each.name,
                    "id": prompt.question.id,
                    "turn": turn,
                    "prompt": prompt.question.turns[turn],
                    "answer": answered.text,
                    "tokens": len(answered.generated.answer),
                    "finished": answered.generated.finished,
                }
                if result.verdicts is not None:
                    row |= {"expected": prompt.expected, "right": result.verdicts[index].right}
                lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return lines


def _write_judged(folder: Path, prompts: PromptSet, policy: EvaluatedPolicy, now: float) -> None:
    """Write answers for judges: those of a benchmark in its format, those of held-out prompts in every format."""
    conversations = policy.result.sets[prompts.name].answers
    answers = [
        Answer(tuple(turn.text for turn in turns), tuple(len(turn.generated.answer) for turn in turns))
        for turns in conversations
    ]
    questions = [prompt.question for prompt in prompts.prompts]
    if prompts.benchmark is not None:
        benchmark = prompts.benchmark
        write_answers(benchmark, questions, answers, model=policy.name, folder=folder / benchmark.name, time=now)
        return
    for benchmark in (benchmark for benchmark in BENCHMARKS.values() if benchmark.question_row is not None):
        own = [own_question(benchmark, int(each.id), each.turns[0], dataset=prompts.dataset) for each in questions]
        place = folder / prompts.name / benchmark.name
        write_answers(benchmark, own, answers, model=policy.name, folder=place, time=now)
        if benchmark.key is not None:  # AlpacaEval reads the questions from the answers
            write_questions(own, folder=place)
