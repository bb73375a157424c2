"""What an evaluation leaves: ``eval.json``, every generation, and the files for judges."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sepo import __version__
from sepo.errors import SepoError
from sepo.evaluation.estimates import CONFIDENCE, RESAMPLES
from sepo.evaluation.fields import SCHEMA_VERSION
from sepo.evaluation.judges import JUDGES, Answer, own_question, write_answers, write_questions
from sepo.evaluation.preference import preference_change
from sepo.evaluation.prompts import PromptSet
from sepo.evaluation.run import Divergence, EvaluationSettings, PolicyResult, SetResult
from sepo.files import write_whole
from sepo.recipe.settings import ModelSpec

HELDOUT = "heldout"
"""The name of the prompts of held-out pairs."""

RESULT, GENERATIONS, JUDGED = "eval.json", "generations.jsonl", "judges"

MEASURES = ("summed", "length_normalized", "reward")
ROLES = ("before", "after")
_DEFAULT_FOLDER = "eval_output"


@dataclass(frozen=True)
class EvaluatedPolicy:
    """A policy that was measured.

    Args:
        name: for files and leaderboards.
        spec: the model.
        dtype: in which it computes.
        result: what was measured.
        load_seconds: loading it took.
    """

    name: str
    spec: ModelSpec
    dtype: str
    result: PolicyResult
    load_seconds: float


def claimed_folder(wanted: Path | None) -> Path:
    """Make the folder for the results, before anything is computed that could not be written afterwards.

    Args:
        wanted: the user's, or None for ``eval_output`` here, with a number where results are there already.

    Raises:
        SepoError: results are in the user's folder already, or it cannot be made.
    """
    if wanted is not None and _taken(wanted.expanduser()):
        raise SepoError(
            f"-o {wanted} has results already ({', '.join(_taken(wanted.expanduser()))}); name another folder."
        )
    folder, number = Path(_DEFAULT_FOLDER) if wanted is None else wanted.expanduser(), 1
    while _taken(folder):
        number += 1
        folder = Path(f"{_DEFAULT_FOLDER}-{number}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SepoError(f"-o {folder}: no such folder can be made ({error.strerror}); name another one.") from error
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
) -> dict[str, Any]:
    """The content of ``eval.json``; ``sepo.evaluation.fields`` says what each field is.

    Args:
        policies: by role, ``after`` and perhaps ``before``.
        reference: the recipe's key that names it, and the model; or None.
        data: the fields of ``data``.
        prompts: what was asked.
        settings: the rest.
        versions: of packages.
    """
    before, after = (policies.get(role) for role in ROLES)
    change = (
        preference_change(before.result.margins, after.result.margins, seed=settings.seed) if before and after else None
    )
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
        "change": None
        if change is None
        else {name: {what: asdict(value) for what, value in found.items()} for name, found in change.items()},
    }


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
    return {**values, "kl": None if part.kl is None else _divergence(part.kl)}


def _divergence(part: Divergence) -> dict[str, Any]:
    return asdict(part)


def _spec(spec: ModelSpec) -> dict[str, Any]:
    return {"model": spec.model, "adapters": list(spec.adapters), "quantization_bit": spec.quantization_bit}


def write_results(
    folder: Path, values: Mapping[str, Any], policies: Mapping[str, EvaluatedPolicy], prompts: Sequence[PromptSet]
) -> list[Path]:
    """Write everything; ``eval.json`` comes last, so that a folder that has it has the rest.

    Args:
        folder: from ``claimed_folder``.
        values: from ``result_values``.
        policies: by role.
        prompts: what was asked.

    Returns:
        What was written: files, and the folder of the files for judges.
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
        for prompt, turns in zip(each.prompts, policy.result.sets[each.name].spoken, strict=True):
            for turn, spoken in enumerate(turns):
                row = {
                    "policy": role,
                    "prompts": each.name,
                    "id": prompt.question.id,
                    "turn": turn,
                    "prompt": prompt.question.turns[turn],
                    "answer": spoken.text,
                    "tokens": len(spoken.generated.answer),
                    "finished": spoken.generated.finished,
                }
                lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return lines


def _write_judged(folder: Path, prompts: PromptSet, policy: EvaluatedPolicy, now: float) -> None:
    """A benchmark's own questions in its format; prompts of held-out pairs in every format, with their questions."""
    spoken = policy.result.sets[prompts.name].spoken
    answers = [
        Answer(tuple(turn.text for turn in turns), tuple(len(turn.generated.answer) for turn in turns))
        for turns in spoken
    ]
    asked = [prompt.question for prompt in prompts.prompts]
    if prompts.judge is not None:
        judge = prompts.judge
        write_answers(judge, asked, answers, model=policy.name, folder=folder / judge.name, time=now)
        return
    for judge in (judge for judge in JUDGES.values() if judge.asked is not None):
        own = [own_question(judge, int(each.id), each.turns[0], dataset=prompts.dataset) for each in asked]
        place = folder / prompts.name / judge.name
        write_answers(judge, own, answers, model=policy.name, folder=place, time=now)
        if judge.key is not None:  # AlpacaEval reads the questions from the answers
            write_questions(own, folder=place)
