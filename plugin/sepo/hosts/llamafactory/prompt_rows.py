"""Prompts of a recipe's data sets, for commands that sample from its policy: those of ranking rows and of SFT rows."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sepo.errors import SepoError
from sepo.evaluation.benchmarks import Question
from sepo.evaluation.prompt_files import read_prompts
from sepo.evaluation.prompts import Prompt, distinct_rows
from sepo.hosts.llamafactory.checks import datasets_are_ranked
from sepo.hosts.llamafactory.expected_answers import carried_expected_answers
from sepo.hosts.llamafactory.sample import training_rows
from sepo.judges import Judge
from sepo.text.conversations import CARRIED_EXPECTED
from sepo.text.revision_prompts import quoted_conversation
from sepo.training.row_losses import RowLosses

_MEDIA = ("images", "videos", "audios")


@dataclass(frozen=True)
class ReadPrompts:
    """Distinct prompts.

    Args:
        prompts: the prompts; the number of each among the rows is the id of its question.
        rows: number of rows that were read.
        source: the data set as the recipe names it, or the files.
    """

    prompts: tuple[Prompt, ...]
    rows: int
    source: str


def dataset_prompts(
    recipe: Mapping[str, Any],
    *,
    judge: Judge | None,
    column: str,
    losses: RowLosses,
    part: Literal["train", "eval"] = "train",
) -> ReadPrompts:
    """Return the prompts of the rows that a recipe trains on: their conversations up to the last response.

    Args:
        recipe: keys and values; ``dataset`` names ranking data sets, or data sets of conversations.
        judge: reads the expected answers; None without them.
        column: column of the data sets that has them.
        losses: gets the numbers of rows that are left out.
        part: ``train``, or ``eval`` for the rows that ``val_size`` splits off.

    Raises:
        SepoError: the data cannot be read, or have no prompt.
    """
    ranking = datasets_are_ranked(recipe)
    carried = contextlib.nullcontext() if judge is None else carried_expected_answers(judge.reward, column)
    with carried:
        rows = training_rows(recipe, losses, ranking=ranking, part=part)
    name = str(recipe["dataset"]) if not isinstance(recipe["dataset"], list) else ",".join(recipe["dataset"])
    return _distinct([*_prompts(rows, name)], source=name)


def file_prompts(files: tuple[Path, ...], *, option: str, judge: Judge | None, column: str) -> ReadPrompts:
    """Return the prompts of files; see ``read_prompts``.

    Args:
        files: the files.
        option: the key that names them, for messages.
        judge: reads the expected answers; None without them.
        column: field of the rows that has them.

    Raises:
        SepoError: a file cannot be read, or a row is no prompt or has no expected answer of the judge.
    """
    found: list[Prompt] = []
    for file in files:
        for prompt in read_prompts(file, option=option, expected_column=column):
            if judge is not None and prompt.expected is not None:
                try:
                    judge.reward("", prompt.expected)
                except (SepoError, TypeError) as error:
                    raise SepoError(f"{option} {file}: row {int(prompt.question.id) + 1}, {column}: {error}") from None
            question = Question(len(found), prompt.question.turns, {})
            found.append(Prompt(question, prompt.messages, prompt.system, prompt.tools, prompt.expected))
    return _distinct(found, source=", ".join(file.name for file in files))


def _prompts(rows: Any, name: str) -> Iterator[Prompt]:
    for index, row in enumerate(rows):
        media = [kind for kind in _MEDIA if row.get(f"_{kind}")]
        if media:
            raise SepoError(
                f"a row of {name} has {media[0]}, and responses are sampled to text only; name data sets of text. The "
                f"row begins {row['_prompt'][0]['content'][:60]!r}."
            )
        system, tools, expected = row["_system"] or "", row["_tools"] or "", row.get(CARRIED_EXPECTED)
        messages = tuple({"role": turn["role"], "content": turn["content"]} for turn in row["_prompt"])
        question = Question(index, (quoted_conversation(messages, system=system, tools=tools),), {})
        yield Prompt(question, messages, system, tools, None if expected is None else json.loads(expected))


def _distinct(prompts: list[Prompt], *, source: str) -> ReadPrompts:
    keys = (json.dumps([prompt.messages, prompt.system, prompt.tools]) for prompt in prompts)
    expected = (None if p.expected is None else json.dumps(p.expected, ensure_ascii=False) for p in prompts)
    places, answers = distinct_rows(keys, expected, name=source)
    kept = []
    for place in places:
        prompt = prompts[place]
        answer = json.loads(answers[place]) if place in answers else None
        kept.append(Prompt(prompt.question, prompt.messages, prompt.system, prompt.tools, answer))
    return ReadPrompts(tuple(kept), len(prompts), source)
