"""Rows of token ids for ``PreferenceTrainer``: tokenized with a chat template, checked against a method, padded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sepo.errors import SepoError
from sepo.objectives import Method
from sepo.selection import SIDES
from sepo.text.template_tokens import NO_TEMPLATE, TemplateTokens, before_text, template_tokens
from sepo.text.token_texts import TokenTexts
from sepo.training.collators import selecting_collator
from sepo.training.reward_columns import RewardCollator
from sepo.training.row_losses import RowLosses
from sepo.training.selection_columns import (
    COUNT_COLUMNS,
    IGNORE_INDEX,
    SCORE_COLUMNS,
    STEP_COLUMNS,
)
from sepo.training.trainable_rows import SAME_RESPONSES

Row = Mapping[str, Any]


ID_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
"""Row columns: token ids of the prompt and of each response, including its end of turn."""

REWARD_COLUMNS = ("chosen_token_rewards", "rejected_token_rewards")
"""Row columns: T-REG's reward of each response token, in [-0.5, 0.5]."""

_PAD_TO = 8

_CUT_TO_TEMPLATE = "max_tokens leaves only tokens of the chat template of a response"

_THOUGHT = "<think>\na\n</think>\n\na"
"""A response with a thought, before which templates of reasoning models write no empty one."""


def encode_pairs(rows: Iterable[Row], tokenizer: Any, *, max_tokens: int | None = None) -> list[dict[str, Any]]:
    """Tokenize preference pairs with the tokenizer's chat template.

    Rows whose prompt leaves no room for a response, or only for tokens of the template, and pairs whose responses have
    the same tokens are skipped; the log has a table with their numbers.

    Args:
        rows: each with ``prompt`` (one user message) or ``messages`` (the turns before the response), ``chosen`` and
            ``rejected``: texts, or messages as ``{"role": "assistant", "content": ...}``, alone or in a list of one.
        tokenizer: a transformers tokenizer with a chat template.
        max_tokens: maximum number of tokens of a prompt with one response; longer responses are truncated at the end.
            None for no limit.

    Returns:
        The other rows with all their columns, ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``; and, if the template
        writes tokens besides the text and the end of turn, ``chosen_candidates`` and ``rejected_candidates``: whether
        each token may be selected.

    Raises:
        SepoError: if there is no chat template, a row lacks these columns, a response is empty, the template writes the
            prompt differently if a response follows, or no row is left.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise SepoError(
            f"{type(tokenizer).__name__} has no chat template, which is needed to encode conversations: set "
            f"tokenizer.chat_template, or provide the columns {', '.join(ID_COLUMNS)}."
        )
    given = list(rows)
    template = _written(conversation(given[0], 0), tokenizer) if given else NO_TEMPLATE
    losses, encoded, full, last = RowLosses(), [], "", ""
    for index, row in enumerate(given):
        made = _encoded(row, index, tokenizer, max_tokens, template)
        reason = ""
        if max_tokens is not None and len(made["prompt_ids"]) >= max_tokens:
            reason = f"the prompt has max_tokens {max_tokens} or more"
            full = full or (
                f"the prompt of row {index} has {len(made['prompt_ids'])} tokens and max_tokens is {max_tokens}, so no "
                "response fits"
            )
        elif template and not all(any(made[f"{side}_candidates"]) for side in SIDES):
            reason = _CUT_TO_TEMPLATE
        elif made["chosen_ids"] == made["rejected_ids"]:
            reason = SAME_RESPONSES
        if not reason:
            encoded.append(made)
            continue
        last = full or reason
        text = tokenizer.decode(made["prompt_ids"], skip_special_tokens=True)
        losses.add("pairs", "skipped", reason, 1, example=text)
    losses.used("pairs", len(encoded))
    if given and not encoded:
        raise SepoError(f"no row is left to train on: {last}. Remove such rows or raise max_tokens.")
    if len(encoded) < len(given):
        losses.log()
    return encoded


def _encoded(row: Row, index: int, tokenizer: Any, max_tokens: int | None, template: TemplateTokens) -> dict[str, Any]:
    turns = conversation(row, index)
    prompt = _rendered(turns, tokenizer)
    encoded = {**row, "prompt_ids": tokenizer.encode(prompt, add_special_tokens=False)}
    room = None if max_tokens is None else max(0, max_tokens - len(encoded["prompt_ids"]))
    for side in SIDES:
        written = _response(turns, prompt, response_text(row, side, index), tokenizer)
        if written is None:
            raise SepoError(
                f"the chat template writes the prompt of row {index} differently if a response follows, so the start "
                f"of the {side} response is unknown: provide the columns {', '.join(ID_COLUMNS)}."
            )
        encoded[f"{side}_ids"] = tokenizer.encode(written, add_special_tokens=False)[:room]
        if template:
            encoded[f"{side}_candidates"] = template.candidates(encoded[f"{side}_ids"])
    return encoded


def _rendered(turns: Sequence[Mapping[str, str]], tokenizer: Any) -> str:
    return str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))


def _response(turns: Sequence[Mapping[str, str]], prompt: str, text: str, tokenizer: Any) -> str | None:
    """Return what the chat template writes after the prompt; None if it writes the prompt differently."""
    turn = {"role": "assistant", "content": text}
    whole = tokenizer.apply_chat_template([*turns, turn], tokenize=False)
    return whole[len(prompt) :] if whole.startswith(prompt) else None


def _written(turns: Sequence[Mapping[str, str]], tokenizer: Any) -> TemplateTokens:
    """Return the tokens that the chat template writes into a response to a conversation."""
    prompt = _rendered(turns, tokenizer)

    def encode(text: str) -> list[int]:
        written = _response(turns, prompt, text, tokenizer)
        return list(tokenizer.encode(written or "", add_special_tokens=False))

    return template_tokens(encode, tokenizer, with_thought=_THOUGHT)


def conversation(row: Row, index: int) -> list[dict[str, str]]:
    """Return the messages before the response, from a row's ``prompt`` or ``messages``.

    Raises:
        SepoError: if the row has neither, or no message.
    """
    turns = row.get("messages", row.get("prompt"))
    if isinstance(turns, str):
        return [{"role": "user", "content": turns}]
    if not turns:
        raise SepoError(
            f"row {index} has the columns {', '.join(row)}, expected prompt (a text) or messages (a list of "
            "{'role': ..., 'content': ...}), chosen and rejected."
        )
    return [dict(turn) for turn in turns]


def response_text(row: Row, side: str, index: int) -> str:
    """Return the text of a row's ``chosen`` or ``rejected`` response.

    Raises:
        SepoError: if there is none, or it is more than one message.
    """
    response = row.get(side)
    if isinstance(response, Sequence) and not isinstance(response, str) and len(response) == 1:
        response = response[0]
    if isinstance(response, Mapping):
        response = response.get("content")
    if not isinstance(response, str) or not response:
        raise SepoError(
            f"'{side}' of row {index} is {str(row.get(side))[:80]!r}, expected one response: a text, or one message "
            "{'role': 'assistant', 'content': ...}. Move the turns before it to messages."
        )
    return response


def add_steps(rows: Iterable[Row], tokenizer: Any) -> list[dict[str, Any]]:
    """Add the step numbers (lines and sentences) of each response, which the selection unit ``step`` needs.

    Args:
        rows: rows with the columns of ``encode_pairs``.
        tokenizer: the tokenizer of their ids.

    Returns:
        The rows with ``chosen_steps`` and ``rejected_steps``.
    """
    texts = TokenTexts(tokenizer)
    return [{**row, **{f"{side}_steps": _steps(row, side, texts) for side in SIDES}} for row in rows]


def _steps(row: Row, side: str, texts: TokenTexts) -> list[int]:
    ids = row[f"{side}_ids"]
    before = before_text(row.get(f"{side}_candidates", ()))
    return [0] * before + texts.steps(ids[before:])


def check_row(row: Row, method: Method) -> None:
    """Raise if a row lacks a column that a method needs.

    Args:
        row: a row of ``PairCollator``.
        method: the resolved method.

    Raises:
        SepoError: if a column is missing or empty, or its length is not that of its response.
    """
    _need(row, ID_COLUMNS, "a pair needs", "encode_pairs adds them")
    for name in ID_COLUMNS:
        if not len(row[name]):
            raise SepoError(f"'{name}' of a row is empty, expected at least one token id: remove such rows.")
    columns: list[str] = []
    if method.needs_scores:
        advice = "score_rows adds them from an oracle and its base"
        _need(row, SCORE_COLUMNS, f"{method.name} with the scorer '{method.scorer}' selects by", advice)
        columns += SCORE_COLUMNS
    if method.needs_token_rewards and not set(SCORE_COLUMNS) <= set(row):
        advice = f"reward_rows adds them; an oracle's {' and '.join(SCORE_COLUMNS)} (score_rows) can replace them"
        _need(row, REWARD_COLUMNS, f"{method.name} regularizes with", advice)
    if method.needs_token_rewards:
        columns += REWARD_COLUMNS if has_rewards(row) else SCORE_COLUMNS
    if method.needs_steps:
        _need(row, STEP_COLUMNS, f"{method.name} with the unit 'step' reads", "add_steps adds them")
        columns += STEP_COLUMNS
    if method.needs_counts:
        advice = "sepo.selection.threshold computes each response's budget"
        _need(row, COUNT_COLUMNS, f"{method.name} with the scope 'dataset' reads", advice)
    for name in columns:
        tokens = row[f"{name.partition('_')[0]}_ids"]
        if len(row[name]) != len(tokens):
            raise SepoError(
                f"'{name}' has {len(row[name])} numbers for a response of {len(tokens)} tokens, expected one per "
                "token: it belongs to other token ids. Compute it again from these rows."
            )


def has_rewards(row: Row) -> bool:
    """Return whether a row has T-REG's token rewards, and not only an oracle's scores."""
    return set(REWARD_COLUMNS) <= set(row)


def _need(row: Row, columns: Sequence[str], what: str, advice: str) -> None:
    missing = [name for name in columns if row.get(name) is None]
    if missing:
        raise SepoError(
            f"{what} the columns {' and '.join(columns)}, and a row has no {', '.join(missing)} (found: "
            f"{', '.join(row)}): {advice}."
        )


class PairCollator:
    """Collator of pairs for ``preference_step``: pads them and adds the inputs of selection and regularization.

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
            right to a multiple of 8; and ``selection``, ``steps`` or ``token_rewards`` if the method needs them.

        Raises:
            SepoError: see ``check_row``.
        """
        for row in rows:
            check_row(row, self.method)
        collate: Any = selecting_collator(_padded, method=self.method)
        if self.method.needs_token_rewards:
            rewarded = all(has_rewards(row) for row in rows)
            collate = RewardCollator(collate, origin="prompts" if rewarded else "oracle")
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
