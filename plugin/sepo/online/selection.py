"""Selection of the tokens of sampled responses that carry gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from sepo.selection.select import select_tokens


def select_sampled(scores: Tensor, mask: Tensor, *, ratio: float, rule: str, better: Tensor | None = None) -> Tensor:
    """Select the share of each response's tokens with the highest scores, or with the lowest where it is a worse one.

    Scores that are rewards, as those of an oracle, select as SePO does (arXiv 2408.13518, Eq. 25): the highest in good
    responses, which are treated as the chosen ones, and the lowest in the others.

    Args:
        scores: [B, T], only read where the mask is True.
        mask: [B, T] bool, True at response tokens.
        ratio: share of the tokens, in (0, 1].
        rule: ``floor``, ``quantile`` or ``mean``; see ``select_tokens``.
        better: [B] bool, True for responses of which the highest scores are selected; None for all.

    Returns:
        [B, T] bool, a subset of the mask.

    Raises:
        SepoError: see ``select_tokens``.
    """
    highest = select_tokens(scores, mask, ratio=ratio, largest=True, rule=rule, what="sampled response")
    if better is None:
        return highest
    lowest = select_tokens(scores, mask, ratio=ratio, largest=False, rule=rule, what="sampled response")
    return torch.where(better.unsqueeze(-1), highest, lowest)
