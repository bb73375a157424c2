"""Token scores and token rewards as row columns for ``PreferenceTrainer``, kept in memory without a store."""

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
from sepo.training.encoded_pairs import Row, conversation, response_text


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
        rows: rows with ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``.
        oracle: the model trained by preference optimization, with the policy's tokenizer.
        base: the model that it was trained from; None for a PEFT oracle, whose base is the model without the adapter.
        batch_tokens: padded tokens per batch.
        on_batch: called with the number of responses after each batch (two per row; a progress bar).

    Returns:
        The rows with ``chosen_scores`` and ``rejected_scores``: nats, one number per response token.

    Raises:
        SepoError: if the oracle and its base are the same or have equal weights, or a token id is not in a model's
            vocabulary.
    """
    if base is oracle or (base is None and not hasattr(oracle, "disable_adapter")):
        raise SepoError(
            "the oracle and its base are the same model, so every score would be zero: pass as base the model that the "
            "oracle was trained from (or a PEFT oracle and no base)."
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
    """Compute T-REG's reward of every response token by contrastive prompting (Eq. 3 and Figure 2).

    The model is prompted, in its chat template, to rewrite the response to be better and to be worse; the response's
    own tokens follow, and the reward of a token is sigmoid(log pi(better) - log pi(worse)) - 0.5.

    Args:
        rows: rows of ``encode_pairs``, with their texts.
        model: the scoring model: the reference, which is the policy before training.
        tokenizer: the tokenizer of the rows' ids.
        batch_tokens: padded tokens per batch.
        on_batch: called with the number of responses after each batch (two per row; a progress bar).

    Returns:
        The rows with ``chosen_token_rewards`` and ``rejected_token_rewards``, in [-0.5, 0.5].

    Raises:
        SepoError: if a row lacks its texts or exceeds the model's positions together with a prompt, or a token id is
            not in the model's vocabulary.
    """
    pairs = [_contrastive_pair(row, index, side, tokenizer) for side in SIDES for index, row in enumerate(rows)]
    positions = getattr(getattr(causal_lm(model), "config", None), "max_position_embeddings", None)
    for number, pair in enumerate(pairs):
        length = max(len(pair.better.input_ids), len(pair.worse.input_ids))
        if positions and length > positions:
            raise SepoError(
                f"row {number % len(rows)} has {length} tokens with T-REG's prompt, which quotes prompt and response, "
                f"expected at most the model's {positions} positions: remove the row, or use a model with more."
            )
    _check_ids(model, [pair.better for pair in pairs])
    scorer = ContrastiveScorer(_as_it_is(model), batch_tokens=batch_tokens)
    with in_evaluation_mode(model):
        rewards = scorer.score(pairs, on_batch=on_batch)
    return _joined(rows, rewards, "token_rewards")


def _as_it_is(model: nn.Module) -> ScoringModel:
    return ScoringModel(model, contextlib.nullcontext)


def _contrastive_pair(row: Row, index: int, side: str, tokenizer: Any) -> ContrastivePair:
    question, response = quoted_conversation(conversation(row, index)), response_text(row, side, index)
    return contrastive_pair(question, response, row[f"{side}_ids"], tokenizer=tokenizer)


def contrastive_pair(
    question: str, answer: str, response_ids: Sequence[int], *, tokenizer: Any, chat_template: str | None = None
) -> ContrastivePair:
    """Encode one response after each of T-REG's two prompts, in a tokenizer's chat template.

    Args:
        question: the quoted conversation.
        answer: the text of the response.
        response_ids: its tokens, including the end of turn.
        tokenizer: a transformers tokenizer.
        chat_template: replaces the tokenizer's chat template; None to use that.
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
    vocabulary = cast(Any, causal_lm(model)).get_input_embeddings().num_embeddings
    largest = max((max(sequence.input_ids) for sequence in sequences), default=0)
    if largest >= vocabulary:
        raise SepoError(
            f"the rows have the token id {largest}, expected ids below {vocabulary}, the vocabulary size of "
            f"{type(causal_lm(model)).__name__}: use scoring models with the policy's tokenizer."
        )


def _joined(rows: Sequence[Row], numbers: Sequence[Tensor], column: str) -> list[dict[str, Any]]:
    """Return the rows with one more column per side.

    Raises:
        SepoError: if every number is zero.
    """
    if rows and not torch.cat(list(numbers)).any():
        raise SepoError(
            f"all {column.replace('_', ' ')} are zero: both sides of the comparison assign every token the same "
            "probability. Check that the models are trained and differ."
        )
    half = len(rows)
    return [
        {**row, f"chosen_{column}": numbers[index].tolist(), f"rejected_{column}": numbers[half + index].tolist()}
        for index, row in enumerate(rows)
    ]
