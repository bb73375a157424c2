"""Analysis of the demonstration: the known errors that the selection found, and the effect of training."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sepo.errors import SepoError
from sepo.evaluation.divergence import answer_sums
from sepo.evaluation.preference import accuracy_and_margin, margins
from sepo.forward.sequences import ScoredSequence, ScoringModel
from sepo.score_store import ScoreStore
from sepo.selection.select import select_tokens
from sepo.text.spans import marked_tokens

PROMPT = "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
_TURN_ENDS = "<|im_end|>"
END_OF_TURN = f"{_TURN_ENDS}\n"
"""End of turn of the template ``smollm``, which the demonstration trains with; its tokens are scored too."""

_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class RejectedAnswer:
    """The tokens of a rejected response with their scores, known errors and selection.

    Args:
        tokens: the tokens' text.
        scores: log pi_oracle - log pi_base, nats, [T].
        wrong: bool, [T], True for tokens that overlap a known error.
        selected: bool, [T], True for selected tokens.
    """

    tokens: tuple[str, ...]
    scores: Tensor
    wrong: Tensor
    selected: Tensor


def rejected_answers(
    store: Path, rows: Sequence[Mapping[str, Any]], *, tokenizer: Any, ratio: float
) -> list[RejectedAnswer]:
    """Join the stored scores of rejected responses with their known errors.

    Args:
        store: the directory of the score store.
        rows: the data set's rows, in order, with ``rejected_error_spans`` in characters of the rejected response.
        tokenizer: the tokenizer that the scores were computed with.
        ratio: share of tokens selected in each rejected response (lowest scores).

    Returns:
        One entry per row.

    Raises:
        SepoError: the store holds scores of other rows.
    """
    scores = ScoreStore.at(store).table().column("rejected_scores").to_pylist()
    if len(scores) != len(rows):
        raise SepoError(f"{store} holds scores of {len(scores)} rows, but the data set has {len(rows)}.")
    answers = []
    for index, (row, values) in enumerate(zip(rows, scores, strict=True)):
        text = row["rejected"]["value"]
        encoded = tokenizer(text + END_OF_TURN, add_special_tokens=False, return_offsets_mapping=True)
        if len(values) != len(encoded["input_ids"]):
            raise SepoError(
                f"{store}: row {index} has {len(values)} scores, expected {len(encoded['input_ids'])}, one for each "
                "token of the rejected response."
            )
        scored = torch.tensor(values)
        spans = [(span["start"], span["end"]) for span in row["rejected_error_spans"]]
        wrong = torch.tensor(marked_tokens(encoded["offset_mapping"], spans))
        # As in training, the line break after the end of turn is not selected.
        candidates = [start < len(text + _TURN_ENDS) for start, _ in encoded["offset_mapping"]]
        mask = torch.tensor([candidates])
        selected = select_tokens(scored.unsqueeze(0), mask, ratio=ratio, largest=False)[0]
        tokens = tuple((text + END_OF_TURN)[start:end] for start, end in encoded["offset_mapping"])
        answers.append(RejectedAnswer(tokens, scored, wrong, selected))
    return answers


def found_share(answers: Sequence[RejectedAnswer]) -> tuple[int, int]:
    """Return the number of known wrong tokens that were selected, and of all known wrong tokens."""
    found = sum(int((answer.wrong & answer.selected).sum()) for answer in answers)
    return found, sum(int(answer.wrong.sum()) for answer in answers)


def preference_accuracy(model: nn.Module, rows: Sequence[Mapping[str, Any]], *, tokenizer: Any) -> tuple[float, float]:
    """Compute how often a model assigns the chosen response a higher log-probability per token than the rejected one.

    Args:
        model: a causal language model in eval mode.
        rows: ranking rows with one human turn.
        tokenizer: its tokenizer.

    Returns:
        The share of rows, and the mean margin in nats per token.
    """
    sequences = []
    for side in ("chosen", "rejected"):
        for row in rows:
            prompt = PROMPT.format(question=row["conversations"][0]["value"])
            start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            answer = tokenizer(row[side]["value"] + END_OF_TURN, add_special_tokens=False)["input_ids"]
            sequences.append(ScoredSequence([*start, *answer], len(start)))
    policy = ScoringModel(model, contextlib.nullcontext)
    sums = answer_sums(policy, sequences, reference=None, batch_tokens=_BATCH_TOKENS, pairs=True)
    found = margins(sums.part(slice(len(rows))), sums.part(slice(len(rows), None)))
    return accuracy_and_margin(found["length_normalized"])
