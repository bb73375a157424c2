"""Pairs from a model's own responses to the questions: a wrong response against a right one.

``python -m demo_pairs.answers`` samples SmolLM2-135M-Instruct and writes the shipped files anew. The random numbers of
a response follow from seed, prompt and its number (``sepo sample``), but two tokens that are nearly equally probable
can change places on another processor: the tests compare everything but the sampled text.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from demo_pairs.questions import TRAINED, UNSEEN, Question, generate_questions
from sepo.demo.dataset import SHIPPED, dataset_info
from sepo.demo.model import default_model_directory, prepare_model
from sepo.files import write_whole

PROMPTS, PAIRS, HELDOUT = 200, 160, 75
"""Questions that are sampled, pairs that are made of them, and held-out questions of the same domains."""
UNSEEN_QUESTIONS = 45
"""Questions of the unseen domains."""

_SAMPLING = {"samples": 4, "temperature": 0.6, "seed": 1}
_MAX_NEW_TOKENS = 24


def question_row(question: Question, *, chosen: str, rejected: str) -> dict[str, Any]:
    """Return a ranking row with the question's expected answer and domain."""
    return {
        "instruction": question.text,
        "chosen": chosen,
        "rejected": rejected,
        "expected": question.expected,
        "domain": question.domain,
    }


def answer_pairs(
    questions: Sequence[Question], samples: Iterable[Mapping[str, Any]], *, most: int | None = None
) -> list[dict[str, Any]]:
    """Pair a wrong response of the model with a right one, or with the written one where the model has none.

    Only responses that ended count. Of several, the first is taken. Questions without a wrong response have no pair.

    Args:
        questions: the sampled questions.
        samples: lines of ``samples.jsonl``, whose ``id`` is the question's index.
        most: maximum number of pairs; the first are kept.

    Returns:
        Rows in the order of the questions.
    """
    rows = []
    for line in sorted(samples, key=lambda line: line["id"]):
        question = questions[line["id"]]
        ended = [response for response in line["responses"] if response["finished"]]
        wrong = next((response["text"] for response in ended if not response["right"]), None)
        right = next((response["text"] for response in ended if response["right"]), question.answer)
        if wrong is not None:
            rows.append(question_row(question, chosen=right, rejected=wrong))
    return rows[:most]


def heldout_rows(questions: Sequence[Question]) -> list[dict[str, Any]]:
    """Return held-out rows: the written response against the same with the ruled-out value."""
    return [
        question_row(item, chosen=item.answer, rejected=item.answer.replace(item.right, item.wrong))
        for item in questions
    ]


def generated_rows() -> tuple[list[Question], dict[str, list[dict[str, Any]]]]:
    """Return the questions to sample, and the rows of the held-out files by name."""
    questions = generate_questions(TRAINED, PROMPTS + HELDOUT)
    heldout = {"answers_heldout": questions[PROMPTS:], "answers_unseen": generate_questions(UNSEEN, UNSEEN_QUESTIONS)}
    return questions[:PROMPTS], {name: heldout_rows(part) for name, part in heldout.items()}


def sampled(questions: Sequence[Question], directory: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Sample the demonstration's model by `sepo sample`.

    Args:
        questions: the questions.
        directory: an empty directory for recipe, rows and samples.

    Returns:
        The lines of ``samples.jsonl``, and what they depend on.
    """
    rows = heldout_rows(questions)
    name = "answers_heldout"
    (directory / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    (directory / "dataset_info.json").write_text(json.dumps({name: dataset_info()[name]}), encoding="utf-8")
    recipe = {
        "model_name_or_path": str(prepare_model(default_model_directory())),
        "template": "smollm",
        "stage": "dpo",
        "dataset": name,
        "dataset_dir": str(directory),
        "output_dir": str(directory / "unused"),
        "max_new_tokens": _MAX_NEW_TOKENS,
        "use_cpu": True,
    }
    (directory / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    options = [word for name, value in _SAMPLING.items() for word in (f"--{name}", str(value))]
    judge = ["--judge", "contains", "--expected-column", "expected", "--judge-option", "whole_words=true"]
    command = [sys.executable, "-m", "sepo", "sample", str(directory / "recipe.yaml"), *options, *judge]
    subprocess.run([*command, "-o", str(directory / "samples")], check=True)
    lines = (directory / "samples" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    source = json.loads((directory / "samples" / "sampling.json").read_text(encoding="utf-8"))
    versions = source["notes"]["versions"]
    return [json.loads(line) for line in lines], {"settings": source["settings"], "versions": versions}


def write_answers(directory: Path) -> None:
    """Sample and write the three files, and ``answers_source.json`` with what the samples depend on."""
    questions, files = generated_rows()
    with tempfile.TemporaryDirectory() as temporary:
        lines, source = sampled(questions, Path(temporary))
    contents = {"answers_pairs": answer_pairs(questions, lines, most=PAIRS), **files, "answers_source": source}
    for name, content in contents.items():
        write_whole(directory / f"{name}.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    write_answers(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(str(SHIPPED)))
