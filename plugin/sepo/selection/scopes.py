"""Selection under a token budget per response, per pair, or over the whole data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sepo.errors import SepoError
from sepo.selection.select import check_ratio, check_scores, floor_count
from sepo.selection.units import pick_spans, pick_steps, pick_tokens, ranks

Scope = Literal["response", "pair", "dataset"]
SCOPES: tuple[str, ...] = get_args(Scope)

DEFAULT_SPAN_TOKENS = 3
"""Default of the minimum span length, in tokens."""


@dataclass(frozen=True)
class Responses:
    """The inputs of a selection over one side of a batch.

    Attributes:
        scores: [B, T] any floating dtype; only read where ``mask`` is True.
        mask: [B, T] bool, True where a response token counts.
        ratio: the share of counted tokens to keep, in (0, 1].
        largest: True to select the highest scores, False to select the lowest.
        what: name of a row in error messages.
        steps: [B, T] integers, the number of each token's step; for the unit ``step``.
        counts: [B] integers, each response's budget, which replaces ``ratio`` (scope ``dataset``, from
            ``sepo.selection.threshold``).
        ties: [B, T] integers, only read where scores are equal: the lowest number is selected first. None for the
            earlier token.
    """

    scores: Tensor
    mask: Tensor
    ratio: float
    largest: bool
    what: str = "response"
    steps: Tensor | None = None
    counts: Tensor | None = None
    ties: Tensor | None = None


def select_units(responses: Responses, *, unit: str = "token", span_tokens: int = DEFAULT_SPAN_TOKENS) -> Tensor:
    """Select units of every response under its budget, n = max(1, floor(ratio * n_tokens + 1e-9)) or its count.

    ``token`` keeps exactly n tokens, ``span`` exactly max(n, min(span_tokens, n_tokens)) in runs of at least
    ``span_tokens`` (or the whole response), ``step`` whole steps until at least n; see ``sepo.selection.units``. Tokens
    that do not count are treated as absent: a run continues across them.

    Args:
        responses: the batch.
        unit: ``token``, ``span`` or ``step``.
        span_tokens: minimum length of a span.

    Returns:
        [B, T] bool, a subset of the mask with at least one token in every row. Computed on the CPU, row by row, so it
        depends neither on padding nor on the rest of the batch.

    Raises:
        SepoError: see ``sepo.selection.select.select_tokens``; also if steps are missing or not of the mask's shape.
    """
    rows = _rows(responses, needs_steps=unit == "step")
    budgets = _budgets(responses, rows)
    picked = [_pick([row], budget, unit, span_tokens) for row, budget in zip(rows, budgets, strict=True)]
    return _as_mask(responses.mask, rows, picked)


def select_pairs(
    chosen: Responses, rejected: Responses, *, unit: str = "token", span_tokens: int = DEFAULT_SPAN_TOKENS
) -> tuple[Tensor, Tensor]:
    """Select units of a pair's two responses under one budget, max(1, floor(ratio * (n_chosen + n_rejected) + 1e-9)).

    The tokens (spans, steps) of both compete by their oriented score, which is negated on a side whose lowest scores
    are selected. The best unit of each response is always kept, so ``token`` keeps exactly max(2, budget).

    Args:
        chosen: [B, Tw]; its ratio is the pair's.
        rejected: [B, Tl].
        unit: ``token``, ``span`` or ``step``.
        span_tokens: minimum length of a span.

    Returns:
        The selections of both sides, [B, Tw] and [B, Tl] bool. Ties are broken in favour of chosen over rejected and
        of earlier over later tokens, unless both sides have ``ties``.

    Raises:
        SepoError: as ``select_units``; also if the numbers of rows differ.
    """
    check_ratio(chosen.ratio)
    won, lost = (_rows(side, needs_steps=unit == "step") for side in (chosen, rejected))
    if len(won) != len(lost):
        raise SepoError(f"{len(won)} chosen and {len(lost)} rejected responses, expected pairs: pass one row of each.")
    picked: tuple[list[list[bool]], list[list[bool]]] = ([], [])
    for first, second in zip(won, lost, strict=True):
        budget = floor_count(len(first.scores) + len(second.scores), chosen.ratio)
        both = _pick([first, second], budget, unit, span_tokens)
        picked[0].append(both[: len(first.scores)])
        picked[1].append(both[len(first.scores) :])
    return _as_mask(chosen.mask, won, picked[0]), _as_mask(rejected.mask, lost, picked[1])


@dataclass(frozen=True)
class _Row:
    """The counted tokens of one response: their positions, oriented scores, step numbers and order among equals."""

    positions: Tensor
    scores: list[float]
    steps: list[int]
    ties: list[int]


def _rows(responses: Responses, *, needs_steps: bool) -> list[_Row]:
    scores, _ = check_scores(responses.scores, responses.mask, what=responses.what)
    oriented = (scores if responses.largest else -scores).cpu()
    mask, steps = responses.mask.cpu(), None
    if needs_steps:
        if responses.steps is None or responses.steps.shape != responses.mask.shape:
            found = "missing" if responses.steps is None else f"of shape {list(responses.steps.shape)}"
            raise SepoError(
                f"the steps of the {responses.what}s are {found}, expected the mask's shape "
                f"{list(responses.mask.shape)}: pass the number of each token's step for the unit 'step'."
            )
        steps = responses.steps.cpu()
    ties = None if responses.ties is None else responses.ties.cpu()
    rows = []
    for index, counted in enumerate(mask):
        own, order = ([] if part is None else part[index][counted].tolist() for part in (steps, ties))
        rows.append(_Row(counted.nonzero().flatten(), oriented[index][counted].tolist(), own, order))
    return rows


def _budgets(responses: Responses, rows: Sequence[_Row]) -> list[int]:
    if responses.counts is None:
        check_ratio(responses.ratio)
        return [floor_count(len(row.scores), responses.ratio) for row in rows]
    if responses.counts.shape != (len(rows),):
        raise SepoError(
            f"the counts of the {responses.what}s have shape {list(responses.counts.shape)}, expected [{len(rows)}]: "
            "pass one number of tokens per response."
        )
    return [int(count) for count in responses.counts.tolist()]


def _pick(rows: Sequence[_Row], budget: int, unit: str, span_tokens: int) -> list[bool]:
    scores = [row.scores for row in rows]
    ties = [row.ties for row in rows] if all(row.ties for row in rows) else None
    if unit == "step":
        return pick_steps(scores, [row.steps for row in rows], budget, ties=ties)
    ranked = scores if ties is None else ranks(scores, ties)
    if unit == "span":
        return pick_spans(ranked, budget, minimum=span_tokens)
    return pick_tokens(ranked, budget)


def _as_mask(like: Tensor, rows: Sequence[_Row], picked: Sequence[Sequence[bool]]) -> Tensor:
    selection = torch.zeros(like.shape, dtype=torch.bool)
    for index, (row, kept) in enumerate(zip(rows, picked, strict=True)):
        selection[index, row.positions] = torch.tensor(kept, dtype=torch.bool)
    return selection.to(like.device)
