"""Rows of token ids for a bare trainer: tokenized with a chat template, checked against a method, padded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sepo.errors import SepoError
from sepo.objectives import Method
from sepo.selection import SIDES
from sepo.text.token_texts import TokenTexts
from sepo.training.reward_columns import RewardCollator
from sepo.training.selection_columns import (
    COUNT_COLUMNS,
    IGNORE_INDEX,
    SCORE_COLUMNS,
    STEP_COLUMNS,
    SelectionCollator,
    StepCollator,
)

Row = Mapping[str, Any]


ID_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
"""Row columns: token ids of the prompt and of each response with its end of turn."""

REWARD_COLUMNS = ("chosen_token_rewards", "rejected_token_rewards")
"""Row columns: T-REG's reward of each response token, in [-0.5, 0.5]."""

_PAD_TO = 8


def encode_pairs(rows: Iterable[Row], tokenizer: Any, *, max_tokens: int | None = None) -> list[dict[str, Any]]:
    """Tokenize preference pairs with the tokenizer's chat template.

    Args:
        rows: each with ``prompt`` (one question) or ``messages`` (the conversation up to the answer), ``chosen`` and
            ``rejected``: texts, or messages as ``{"role": "assistant", "content": ...}``, alone or in a list of one.
        tokenizer: one of transformers', with a chat template.
        max_tokens: prompt and response together; longer responses lose their end. None keeps all.

    Returns:
        The rows, their own columns kept, with ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``.

    Raises:
        SepoError: no chat template, a row without these columns, an empty response, a template that writes the prompt
            otherwise once an answer follows, or a prompt that leaves no room for a response.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise SepoError(
            f"{type(tokenizer).__name__} has no chat template, which puts the turns together: set "
            f"tokenizer.chat_template, or make the columns {', '.join(ID_COLUMNS)} yourself."
        )
    return [_encoded(row, index, tokenizer, max_tokens) for index, row in enumerate(rows)]


def _encoded(row: Row, index: int, tokenizer: Any, max_tokens: int | None) -> dict[str, Any]:
    turns = conversation(row, index)
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    encoded = {**row, "prompt_ids": tokenizer.encode(prompt, add_special_tokens=False)}
    room = None if max_tokens is None else max_tokens - len(encoded["prompt_ids"])
    if room is not None and room < 1:
        raise SepoError(
            f"the prompt of row {index} has {len(encoded['prompt_ids'])} tokens and max_tokens is {max_tokens}, so no "
            "response fits: leave the row out or raise max_tokens."
        )
    for side in SIDES:
        turn = {"role": "assistant", "content": answer_text(row, side, index)}
        whole = tokenizer.apply_chat_template([*turns, turn], tokenize=False)
        if not whole.startswith(prompt):
            raise SepoError(
                f"the chat template writes the prompt of row {index} otherwise once an answer follows, so where the "
                f"{side} response begins is not known: make the columns {', '.join(ID_COLUMNS)} yourself."
            )
        encoded[f"{side}_ids"] = tokenizer.encode(whole[len(prompt) :], add_special_tokens=False)[:room]
    return encoded


def conversation(row: Row, index: int) -> list[dict[str, str]]:
    """The messages up to the answer of a row with ``prompt`` or ``messages``.

    Raises:
        SepoError: it has neither, or no message.
    """
    turns = row.get("messages", row.get("prompt"))
    if isinstance(turns, str):
        return [{"role": "user", "content": turns}]
    if not turns:
        raise SepoError(
            f"row {index} has the columns {', '.join(row)}, expected prompt (a text) or messages (a list of "
            "{'role': ..., 'content': ...}) beside chosen and rejected."
        )
    return [dict(turn) for turn in turns]


def answer_text(row: Row, side: str, index: int) -> str:
    """The text of a row's ``chosen`` or ``rejected`` answer.

    Raises:
        SepoError: there is none, or it is more than one message.
    """
    answer = row.get(side)
    if isinstance(answer, Sequence) and not isinstance(answer, str) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, Mapping):
        answer = answer.get("content")
    if not isinstance(answer, str) or not answer:
        raise SepoError(
            f"'{side}' of row {index} is {str(row.get(side))[:80]!r}, expected one answer: a text, or one message "
            "{'role': 'assistant', 'content': ...}. Put the turns before it into messages."
        )
    return answer


def add_steps(rows: Iterable[Row], tokenizer: Any) -> list[dict[str, Any]]:
    """Number the lines and sentences of each response, which the selection unit ``step`` needs.

    Args:
        rows: with the columns of ``encode_pairs``.
        tokenizer: the one that made their ids.

    Returns:
        The rows with ``chosen_steps`` and ``rejected_steps``.
    """
    texts = TokenTexts(tokenizer)
    return [{**row, **{f"{side}_steps": texts.steps(row[f"{side}_ids"]) for side in SIDES}} for row in rows]


def check_row(row: Row, method: Method) -> None:
    """See that a row has what a method needs of it.

    Args:
        row: a row of ``PairCollator``.
        method: the resolved method.

    Raises:
        SepoError: a missing or empty column, or one whose length is not its response's.
    """
    _need(row, ID_COLUMNS, "a pair is", "encode_pairs makes them")
    for name in ID_COLUMNS:
        if not len(row[name]):
            raise SepoError(f"'{name}' of a row is empty, expected at least one token id: leave such rows out.")
    columns: list[str] = []
    if method.needs_scores:
        advice = "score_rows makes them from an oracle and its base"
        _need(row, SCORE_COLUMNS, f"{method.name} with the scorer '{method.scorer}' selects by", advice)
        columns += SCORE_COLUMNS
    if method.needs_token_rewards and not set(SCORE_COLUMNS) <= set(row):
        advice = f"reward_rows makes them; an oracle's {' and '.join(SCORE_COLUMNS)} (score_rows) do as well"
        _need(row, REWARD_COLUMNS, f"{method.name} regularizes with", advice)
    if method.needs_token_rewards:
        columns += REWARD_COLUMNS if has_rewards(row) else SCORE_COLUMNS
    if method.needs_steps:
        _need(row, STEP_COLUMNS, f"{method.name} with the unit 'step' reads", "add_steps makes them")
        columns += STEP_COLUMNS
    if method.needs_counts:
        advice = "sepo.selection.threshold gives each response's share of a data set"
        _need(row, COUNT_COLUMNS, f"{method.name} with the scope 'dataset' reads", advice)
    for name in columns:
        tokens = row[f"{name.partition('_')[0]}_ids"]
        if len(row[name]) != len(tokens):
            raise SepoError(
                f"'{name}' has {len(row[name])} numbers for a response of {len(tokens)} tokens: it belongs to other "
                "token ids. Make it again from these rows."
            )


def has_rewards(row: Row) -> bool:
    """Whether a row carries T-REG's token rewards themselves, not an oracle's scores only."""
    return set(REWARD_COLUMNS) <= set(row)


def _need(row: Row, columns: Sequence[str], what: str, advice: str) -> None:
    missing = [name for name in columns if row.get(name) is None]
    if missing:
        raise SepoError(
            f"{what} the columns {' and '.join(columns)}, and a row has no {', '.join(missing)} (found: "
            f"{', '.join(row)}): {advice}."
        )


class PairCollator:
    """Pad pairs and put beside them what the method selects or regularizes by: a batch for ``preference_step``.

    >>> from sepo.objectives import resolve_method
    >>> row = {"prompt_ids": [5], "chosen_ids": [6, 7], "rejected_ids": [8]}
    >>> batch = PairCollator(resolve_method("simpo"))([row])
    >>> batch["labels"][:, :4]
    tensor([[-100,    6,    7, -100],
            [-100,    8, -100, -100]])

    Args:
        method: the resolved method.
    """

    def __init__(self, method: Method) -> None:
        self.method = method

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Collate B rows.

        Returns:
            ``input_ids``, ``attention_mask`` and ``labels``, int64 [2B, T], chosen responses first, padded on the
            right to a multiple of 8; and ``selection``, ``steps`` or ``token_rewards`` where the method needs them.

        Raises:
            SepoError: see ``check_row``.
        """
        for row in rows:
            check_row(row, self.method)
        collate: Any = _padded
        if self.method.needs_scores:
            collate = SelectionCollator(collate, method=self.method)
        elif self.method.needs_steps:
            collate = StepCollator(collate)
        if self.method.needs_token_rewards:
            prompted = all(has_rewards(row) for row in rows)
            collate = RewardCollator(collate, origin="prompts" if prompted else "oracle")
        batch: dict[str, Any] = collate(rows)
        return batch


def _padded(rows: Sequence[Row]) -> dict[str, Tensor]:
    pairs = [(list(row["prompt_ids"]), list(row[f"{side}_ids"])) for side in SIDES for row in rows]
    width = max(len(prompt) + len(response) for prompt, response in pairs)
    shape = (len(pairs), -(-width // _PAD_TO) * _PAD_TO)
    batch = {"input_ids": torch.zeros(shape, dtype=torch.long), "attention_mask": torch.zeros(shape, dtype=torch.long)}
    batch["labels"] = torch.full(shape, IGNORE_INDEX)
    for index, (prompt, response) in enumerate(pairs):
        end = len(prompt) + len(response)
        batch["input_ids"][index, :end] = torch.tensor(prompt + response)
        batch["attention_mask"][index, :end] = 1
        batch["labels"][index, len(prompt) : end] = torch.tensor(response)
    return batch
