"""What a token scorer is given: a batch of log-probabilities while training, or one response before it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LiveTokens:
    """One side of a batch (all chosen or all rejected responses) at a step of training.

    Attributes:
        policy_logps: [B, T] per-token log-probabilities of the policy in nats, detached, float32 or wider, 0 where
            ``mask`` is False.
        ref_logps: [B, T] those of the reference, or None for a scorer that does not compare with it.
        mask: [B, T] bool, True where a response token counts; scores elsewhere are not read.
        chosen: True for chosen responses, False for rejected ones.
    """

    policy_logps: Tensor
    ref_logps: Tensor | None
    mask: Tensor
    chosen: bool


@dataclass(frozen=True)
class RowTokens:
    """One response of the data set, in the policy's tokens.

    Attributes:
        prompt_ids: the tokens before the response.
        response_ids: the response's tokens, its end of turn included.
        texts: what each response token says; a part of a character is U+FFFD.
        chosen: True for a chosen response, False for a rejected one.
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    texts: tuple[str, ...]
    chosen: bool
