"""Inputs of token scorers: log-probabilities of a batch during training, or responses before training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, device

from sepo.errors import SepoError


@dataclass(frozen=True)
class LiveTokens:
    """One side of a batch (all chosen or all rejected responses) at a training step.

    Attributes:
        policy_logps: [B, T] per-token log-probabilities of the policy in nats, detached, float32 or wider, 0 where
            ``mask`` is False.
        ref_logps: [B, T] those of the reference, or None if the scorer does not compare with it.
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
        response_ids: the response's tokens, including its end of turn.
        texts: the text of each response token; a part of a character is U+FFFD.
        chosen: True for a chosen response, False for a rejected one.
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    texts: tuple[str, ...]
    chosen: bool


BatchScorer = Callable[[Sequence[RowTokens]], Sequence[Sequence[float]]]
"""Function that scores a batch of responses: for each, in order, one number per response token (list, array or CPU
tensor)."""


@dataclass(frozen=True)
class StoredScorer:
    """A scorer that runs once, before training, over batches of responses; its scores are kept in a score store.

    The object of an entry point in the group ``sepo.scorers``. The store is identified by the package's name and
    version, ``settings``, the tokenizer, the template, the cutoff and the rows: anything else that the scores depend on
    (a model, a word list) must be in ``settings``, by content or version.

    Attributes:
        load: called with the device, once per process and only if the store lacks scores; returns the function that
            scores a batch. A response's scores must not depend on the rest of its batch.
        settings: plain JSON values.
        rejected_largest: False if the scores are rewards, so that the lowest-scoring tokens of a rejected response are
            selected; True if a high score marks an important token on both sides.
        bounds: the lowest and highest possible score, or None if unknown (``TokenScorer.bounds``).

    Raises:
        SepoError: if ``load`` is not callable.
    """

    load: Callable[[device], BatchScorer]
    settings: Mapping[str, object] = field(default_factory=dict, hash=False)
    rejected_largest: bool = False
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not callable(self.load):
            raise SepoError(
                f"load of a stored scorer is {self.load!r}, expected a function that takes a device and returns the "
                "function that scores a batch of responses."
            )
