"""Token scores and token rewards as columns of rows, for a bare trainer: kept in memory, no store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from sepo.errors import SepoError
from sepo.forward.evaluation_mode import in_evaluation_mode
from sepo.forward.head import causal_lm
from sepo.forward.revision_rewards import ContrastivePair, ContrastiveScorer
from sepo.forward.sequences import DEFAULT_BATCH_TOKENS, OracleScorer, ScoredSequence, ScoringModel
from sepo.selection import SIDES
from sepo.text.revision_prompts import DIRECTIONS, answer_marker, quoted_conversation, revision_prompt
from sepo.training.encoded_pairs import Row, answer_text, conversation


def score_rows(
    rows: Sequence[Row],
    *,
    oracle: nn.Module,
    base: nn.Module | None = None,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    on_batch: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Score every response token with an oracle: log pi_oracle - log pi_base (SePO, Eq. 24).

    Args:
        rows: with ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``.
        oracle: the model that preference optimization trained, with the policy's tokenizer.
        base: the model that it was trained from; None for a PEFT oracle without its adapter.
        batch_tokens: padded tokens per batch.
        on_batch: called with the number of responses after each batch (two per row; a progress bar).

    Returns:
        The rows with ``chosen_scores`` and ``rejected_scores``: nats, one number per response token.

    Raises:
        SepoError: the oracle is its own base or equals it, or token ids that a model does not know.
    """
    if base is oracle or (base is None and not hasattr(oracle, "disable_adapter")):
        raise SepoError(
            "the oracle and its base are the same model, so every token would score zero: pass as base the model that "
            "the oracle was trained from (or a PEFT oracle and no base)."
        )
    sequences = [
        ScoredSequence([*row["prompt_ids"], *row[f"{side}_ids"]], len(row["prompt_ids"]))
        for side in SIDES
        for row in rows
    ]
    for model in (oracle, base):
        if model is not None:
            _check_ids(model, sequences)
    below = ScoringModel(oracle, cast(Any, oracle).disable_adapter) if base is None else _as_it_is(base)
    scorer = OracleScorer(oracle=_as_it_is(oracle), base=below, batch_tokens=batch_tokens)
    with in_evaluation_mode(oracle), in_evaluation_mode(oracle if base is None else base):
        scores = scorer.score(sequences, pairs=True, on_batch=on_batch)
    return _joined(rows, scores, "scores")


def reward_rows(
    rows: Sequence[Row],
    *,
    model: nn.Module,
    tokenizer: Any,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    on_batch: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Give every response token T-REG's reward by contrastive prompting (Eq. 3 and Figure 2).

    The model is asked, in its chat template, to rewrite the answer to be better and to be worse; the answer's own
    tokens follow, and sigmoid(log pi(better) - log pi(worse)) - 0.5 is a token's reward.

    Args:
        rows: ``encode_pairs``' rows, with their texts.
        model: who is prompted: the reference, which is the policy before it is trained.
        tokenizer: the one that made the rows' ids.
        batch_tokens: padded tokens per batch.
        on_batch: called with the number of responses after each batch (two per row; a progress bar).

    Returns:
        The rows with ``chosen_token_rewards`` and ``rejected_token_rewards``, in [-0.5, 0.5].

    Raises:
        SepoError: a row without its texts, one that does not fit the model's positions together with a prompt, or
            token ids that the model does not know.
    """
    pairs = [_contrastive_pair(row, index, side, tokenizer) for side in SIDES for index, row in enumerate(rows)]
    positions = getattr(getattr(causal_lm(model), "config", None), "max_position_embeddings", None)
    for number, pair in enumerate(pairs):
        length = max(len(pair.better.input_ids), len(pair.worse.input_ids))
        if positions and length > positions:
            raise SepoError(
                f"row {number % len(rows)} has {length} tokens with T-REG's prompt, which quotes question and answer, "
                f"and the model has {positions} positions: leave the row out, or prompt a model with more."
            )
    _check_ids(model, [pair.better for pair in pairs])
    scorer = ContrastiveScorer(_as_it_is(model), batch_tokens=batch_tokens)
    with in_evaluation_mode(model):
        rewards = scorer.score(pairs, on_batch=on_batch)
    return _joined(rows, rewards, "token_rewards")


def _as_it_is(model: nn.Module) -> ScoringModel:
    return ScoringModel(model, contextlib.nullcontext)


def _contrastive_pair(row: Row, index: int, side: str, tokenizer: Any) -> ContrastivePair:
    question, answer = quoted_conversation(conversation(row, index)), answer_text(row, side, index)
    return contrastive_pair(question, answer, row[f"{side}_ids"], tokenizer=tokenizer)


def contrastive_pair(
    question: str, answer: str, response_ids: Sequence[int], *, tokenizer: Any, chat_template: str | None = None
) -> ContrastivePair:
    """Put T-REG's two prompts, in a tokenizer's chat template, before one response.

    Args:
        question: the quoted conversation.
        answer: the response's text.
        response_ids: its tokens, the end of turn included.
        tokenizer: one of transformers'.
        chat_template: in place of the tokenizer's own, or None.
    """
    sequences = []
    for direction in DIRECTIONS:
        turn = {"role": "user", "content": revision_prompt(question, answer, direction)}
        prompt = tokenizer.apply_chat_template(
            [turn], chat_template=chat_template, add_generation_prompt=True, tokenize=False
        )
        prefix = tokenizer.encode(prompt + answer_marker(direction), add_special_tokens=False)
        sequences.append(ScoredSequence([*prefix, *response_ids], len(prefix)))
    return ContrastivePair(*sequences)


def _check_ids(model: nn.Module, sequences: Sequence[ScoredSequence]) -> None:
    known = cast(Any, causal_lm(model)).get_input_embeddings().num_embeddings
    largest = max((max(sequence.input_ids) for sequence in sequences), default=0)
    if largest >= known:
        raise SepoError(
            f"the rows have the token id {largest} and {type(causal_lm(model)).__name__} knows {known} tokens: scoring "
            "models must share the policy's tokenizer."
        )


def _joined(rows: Sequence[Row], numbers: Sequence[Tensor], column: str) -> list[dict[str, Any]]:
    """The rows with a column per side.

    Raises:
        SepoError: every number is zero.
    """
    if rows and not torch.cat(list(numbers)).any():
        raise SepoError(
            f"all {column.replace('_', ' ')} are zero: both sides of the comparison give every token the same "
            "probability. Check that the models are trained ones, and not the same."
        )
    half = len(rows)
    return [
        {**row, f"chosen_{column}": numbers[index].tolist(), f"rejected_{column}": numbers[half + index].tolist()}
        for index, row in enumerate(rows)
    ]
