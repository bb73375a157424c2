"""Estimators of token-level credit, as pure functions of the scores of one response.

Every function takes numbers of the T tokens of one response (tensors, arrays or lists, in nats) and returns a detached
tensor [T] in float32 or wider. The scores have an oracle's sign: the lowest of a rejected response mark its errors. The
difference of two models, which most estimators start from, is ``sepo.selection.scores.oracle_scores``: DPO against its
base, DPO against DPO on exchanged pairs, SFT on chosen responses against SFT on rejected ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from sepo.errors import SepoError

ORACLE_SCORES = ("ratio", "centered", "step_mean", "first_error")
"""What scores are made of the log-ratio of an oracle and its base; ``ratio`` is the log-ratio itself."""

FIRST_ERROR_SHARE = 0.5
"""Default share of the lowest score of a response at which a token counts as an error."""

FIRST_ERROR_DECAY = 0.9
"""Default factor by which a score counts less with every token after the first error."""


def mean_scores(members: Sequence[Any]) -> Tensor:
    """Average the scores that several oracles give to the same tokens.

    The scores of a seed or a checkpoint are an estimate with an error of its own; the mean of N independent ones has an
    error whose variance is 1/N of theirs. It is the log-ratio of the geometric means of oracles and bases.

    Not from a paper; ensembles of whole reward models are common (e.g. arXiv 2310.02743).

    Args:
        members: the scores of each oracle, [T] each.

    Returns:
        [T] their mean; of one oracle, its scores.

    Raises:
        SepoError: if there are none, or the shapes differ.
    """
    rows = [_wide(member) for member in members]
    shapes = {tuple(row.shape) for row in rows}
    if len(shapes) != 1:
        raise SepoError(
            f"scores of {len(rows)} oracles with the shapes {sorted(shapes)}, expected those of at least one, all of "
            "equal shape: pass the scores of the same tokens."
        )
    return torch.stack(rows).mean(0)


def centered_scores(scores: Any, kl: Any) -> Tensor:
    """Subtract from each log-ratio what the base expects at its position: s_t + KL(base || oracle)_t.

    The expectation of log pi_oracle - log pi_base under the base is -KL(base || oracle), so the result has mean 0 over
    the tokens that the base would write. A log-ratio alone is lower where the models differ more, whatever the token;
    the centered one compares the token with its alternatives. It is the advantage of the token if the log-ratio is its
    reward.

    Not from a paper.

    Args:
        scores: [T] log pi_oracle - log pi_base.
        kl: [T] KL(base || oracle) at the position of each token, summed over the vocabulary.

    Returns:
        [T] centered scores, in nats.

    Raises:
        SepoError: if the shapes differ.
    """
    wide, divergence = _wide(scores), _wide(kl)
    _check_shapes("scores", wide, "kl", divergence)
    return wide + divergence


def centered_log_probs(logps: Any, entropy: Any) -> Tensor:
    """Subtract from each log-probability what the model expects at its position: log pi(y_t) + H_t.

    The expectation of log pi under the model is -H, so the result has mean 0 over the tokens that the model would
    write. Low values are tokens that are improbable for how certain the model is: ``-log pi`` alone is high wherever
    there are many ways to go on. ``surprisal`` is ``-log pi``; the negative of the result is the excess over its mean.

    The quantity is that of locally typical sampling (arXiv 2202.00666), which keeps the tokens where it is near 0.

    Args:
        logps: [T] log-probabilities of the tokens.
        entropy: [T] entropy of the model's distribution at the position of each token.

    Returns:
        [T] centered log-probabilities, in nats.

    Raises:
        SepoError: if the shapes differ.
    """
    wide, spread = _wide(logps), _wide(entropy)
    _check_shapes("logps", wide, "entropy", spread)
    return wide + spread


def step_mean_scores(scores: Any, steps: Sequence[int]) -> Tensor:
    """Give every token the mean score of its step (line or sentence).

    ``select_unit: step`` selects whole steps by the same means; with these scores, single tokens, token weights and
    rewards have them too.

    Args:
        scores: [T].
        steps: the number of each token's step; a step is a maximal run of tokens with the same number.

    Returns:
        [T], constant within a step, with the same sum.

    Raises:
        SepoError: if there are not as many step numbers as scores.
    """
    wide = _wide(scores)
    numbers = [int(number) for number in steps]
    if len(numbers) != len(wide):
        raise SepoError(f"{len(numbers)} step numbers for {len(wide)} scores: pass one for each token.")
    lengths = [sum(1 for _ in members) for _, members in groupby(numbers)]
    means = (
        [part.double().mean().to(wide.dtype).expand(len(part)) for part in torch.split(wide, lengths)]
        if lengths
        else []
    )
    return torch.cat(means) if means else wide


def first_error_scores(scores: Any, *, share: float = FIRST_ERROR_SHARE, decay: float = FIRST_ERROR_DECAY) -> Tensor:
    """Let scores count less with every token after the first error of a rejected response: s_t decay^max(0, t - e).

    After an error an oracle lowers the tokens that follow from it, too, so that the lowest score may be far behind its
    cause. The first error e is the first token whose score is at most ``share`` times the lowest one of the response:
    a threshold relative to the response, without a unit. A response without a negative score is returned as it is.

    Not from a paper; the labels of PRM800K (arXiv 2305.20050) end at the first error for the same reason.

    Args:
        scores: [T], the lowest of which mark errors.
        share: share in (0, 1] of the lowest score; 1 for the lowest token itself.
        decay: factor in (0, 1] per token; 1 returns the scores.

    Returns:
        [T]: the scores up to the first error, and the damped ones after it.

    Raises:
        SepoError: if ``share`` or ``decay`` is outside (0, 1].
    """
    for name, value in (("share", share), ("decay", decay)):
        if not 0.0 < value <= 1.0:
            raise SepoError(f"{name} is {value!r}, expected a number in (0, 1].")
    wide = _wide(scores)
    if not len(wide) or not bool(wide.min() < 0.0):
        return wide
    first = int((wide <= share * wide.min()).nonzero()[0])
    distance = (torch.arange(len(wide), device=wide.device) - first).clamp(min=0)
    return wide * torch.tensor(decay, dtype=wide.dtype, device=wide.device) ** distance


def _wide(values: Any) -> Tensor:
    tensor = torch.as_tensor(values).detach()
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _check_shapes(first_name: str, first: Tensor, second_name: str, second: Tensor) -> None:
    if first.shape != second.shape:
        raise SepoError(
            f"{first_name} has shape {list(first.shape)} and {second_name} {list(second.shape)}, expected equal "
            "shapes: pass the numbers of the same tokens."
        )
