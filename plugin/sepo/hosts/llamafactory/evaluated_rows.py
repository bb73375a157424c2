"""Rows, prompts and template of a recipe's policy, for commands that evaluate it or sample from it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from datasets import Dataset

from sepo.errors import SepoError
from sepo.evaluation.benchmarks import Question
from sepo.evaluation.prompts import ChatFormat, Message, Prompt, PromptSet, distinct_rows
from sepo.evaluation.result import HELDOUT
from sepo.hosts.llamafactory.expected_answers import carried_expected_answers
from sepo.hosts.llamafactory.recipe import settings_of
from sepo.hosts.llamafactory.workflow import PreparedData, prepared_data
from sepo.judges import Judge
from sepo.recipe.model_specs import ModelSpec
from sepo.scoring.hub import hub_access
from sepo.scoring.model_files import max_positions
from sepo.text.conversations import CONVERSATION, EVALUATED, EXPECTED
from sepo.text.revision_prompts import quoted_conversation
from sepo.training.trainable_rows import each_dataset


def require_one_process(what: str) -> None:
    """Raise if the command runs in several processes.

    Args:
        what: the work of the command, as the subject of the message.

    Raises:
        SepoError: it was started with torchrun.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SepoError(
            f"WORLD_SIZE is above 1, but {what} runs in one process on one device; start it without torchrun."
        )


def check_least(options: Mapping[str, tuple[int, int]]) -> None:
    """Raise if an option is below its minimum.

    Args:
        options: value and minimum by name of the option.

    Raises:
        SepoError: naming the option.
    """
    for name, (number, least) in options.items():
        if number < least:
            raise SepoError(f"{name} is {number}; a number of at least {least} is expected.")


def evaluated_data(arguments: Any, *, judge: Judge | None = None, column: str = "") -> PreparedData:
    """Tokenize the rows of a recipe, with their conversations and, for a judge, their expected answers.

    Args:
        arguments: the host's five argument objects, of one of sepo's stages.
        judge: reads the expected answers; None without them.
        column: column of the data set that has them.

    Raises:
        SepoError: the data are invalid, or have no such column.
    """
    model_args, data_args, training_args, finetuning_args, _ = arguments
    settings = settings_of(finetuning_args)
    assert settings is not None  # the stage is one of sepo's
    with contextlib.redirect_stdout(io.StringIO()):  # the host prints an example
        return prepared_data(
            settings, model_args=model_args, data_args=data_args, training_args=training_args, keep_text=True,
            text_reader=EVALUATED, more_columns=None if judge is None else carried_expected_answers(judge, column),
        )  # fmt: skip


def rows_of(data: PreparedData, part: str) -> Dataset:
    """Return the rows of one of the host's roles, ``eval`` or ``train``."""
    found: dict[str, Dataset] = {}
    each_dataset(data.datasets, lambda rows, name: found.setdefault(name, rows))
    return found[part]


def chat_format_of(tokenizer: Any, template: Any, policy: ModelSpec, model_args: Any) -> ChatFormat:
    """Return template and tokenizer of a policy."""

    def encode(messages: Sequence[Message], system: str, tools: str) -> list[int]:
        conversation = [*({**message} for message in messages), {"role": "assistant", "content": ""}]
        return list(template.encode_oneturn(tokenizer, conversation, system or None, tools or None)[0])

    return ChatFormat(
        encode=encode,
        decode=lambda ids: str(
            tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        ),
        stop_ids=[token for token in template.get_stop_token_ids(tokenizer) if token is not None],
        pad_id=tokenizer.pad_token_id,
        positions=max_positions(policy, key="model_name_or_path", access=hub_access(model_args)),
    )


def heldout_prompts(rows: Dataset, name: str, *, most: int | None, seed: int) -> PromptSet:
    """Return distinct prompts of rows, in their order, with their expected answers if the rows have them.

    Args:
        rows: rows with conversations.
        name: name of the data set.
        most: number of prompts; a random sample if there are more; None for all.
        seed: seed of that sample.

    Raises:
        SepoError: rows with the same prompt have different expected answers.
    """
    expected = rows[EXPECTED] if EXPECTED in rows.column_names else [None] * len(rows)
    keys = (_prompt_key(json.loads(text)) for text in rows[CONVERSATION])
    places, answers = distinct_rows(keys, expected, name=name)
    if most is not None and most < len(places):
        places = sorted(random.Random(seed).sample(places, most))
    prompts = _prompts(rows, places, {place: json.loads(answer) for place, answer in answers.items()})
    return PromptSet(HELDOUT, list(prompts), None, name)


def _prompt_key(conversation: Mapping[str, Any]) -> str:
    return json.dumps([conversation[part] for part in ("messages", "system", "tools")])


def _prompts(rows: Dataset, places: Sequence[int], expected: Mapping[int, Any]) -> Iterator[Prompt]:
    for place in places:
        conversation = json.loads(rows[place][CONVERSATION])
        messages, system, tools = conversation["messages"], conversation["system"], conversation["tools"]
        question = Question(place, (quoted_conversation(messages, system=system, tools=tools),), {})
        yield Prompt(question, tuple(messages), system, tools, expected.get(place))
