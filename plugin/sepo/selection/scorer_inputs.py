"""What a token scorer is given: a batch of log-probabilities while training, or responses before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, device

from sepo.errors import SepoError


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


BatchScorer = Callable[[Sequence[RowTokens]], Sequence[Sequence[float]]]
"""Scores some responses: for each, in the order given, a number per response token (lists, arrays or CPU tensors)."""


@dataclass(frozen=True)
class StoredScorer:
    """A scorer that runs once, before training, over batches of responses; its scores are kept in a score store.

    What an entry point of the group ``sepo.scorers`` names. The store is found again by the package's name and version,
    ``settings``, the tokenizer, the template, the cutoff and the rows: whatever else the scores depend on (a model, a
    word list) belongs into ``settings``, by content or version.

    Attributes:
        load: called with the device, once per process and only where something is missing in the store; returns the
            function that scores a batch. A response's scores must not depend on the batch that it comes in.
        settings: plain JSON values.
        rejected_largest: False where the scores are rewards, so that the lowest tokens of a rejected response are
            wanted; True where a high score says that a token matters, on both sides.

    Raises:
        SepoError: ``load`` cannot be called.
    """

    load: Callable[[device], BatchScorer]
    settings: Mapping[str, object] = field(default_factory=dict, hash=False)
    rejected_largest: bool = False

    def __post_init__(self) -> None:
        if not callable(self.load):
            raise SepoError(
                f"load of a stored scorer is {self.load!r}, expected a function that takes a device and returns the "
                "function that scores a batch of responses."
            )
