"""T-REG's token rewards: one response scored by a frozen model after two prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from sepo.errors import SepoError
from sepo.forward.sequences import ScoredSequence, ScoringModel, score_batches, scoring_log_probs
from sepo.selection.scores import contrastive_rewards


@dataclass(frozen=True)
class ContrastivePair:
    """One response after the prompt that requests a better response and after the one that requests a worse one.

    Args:
        better: prompt and response as token ids.
        worse: the other prompt with the same response.

    Raises:
        SepoError: if the responses differ.
    """

    better: ScoredSequence
    worse: ScoredSequence

    def __post_init__(self) -> None:
        better, worse = (list(side.input_ids[side.response_start :]) for side in (self.better, self.worse))
        if better != worse:
            raise SepoError(
                f"the two prompts have different responses ({len(better)} and {len(worse)} tokens), expected "
                "the same token ids: append the row's own response to both."
            )


class ContrastiveScorer:
    """Scorer of sigmoid(log pi(y_t | x_better, y_<t) - log pi(y_t | x_worse, y_<t)) - 0.5 for every response token.

    Source: T-REG (arXiv 2412.02685) Eq. 3.

    Args:
        model: the scoring model.
        batch_tokens: padded tokens per batch, including the prompts.
        chunk_tokens: number of tokens whose logits exist at a time; None for 64 MiB of logits.
    """

    def __init__(self, model: ScoringModel, *, batch_tokens: int, chunk_tokens: int | None = None) -> None:
        self.model, self.batch_tokens, self.chunk_tokens = model, batch_tokens, chunk_tokens

    def score(self, pairs: Sequence[ContrastivePair], *, on_batch: Callable[[int], None] | None = None) -> list[Tensor]:
        """Score responses.

        Args:
            pairs: any number, in any order.
            on_batch: called with the number of responses after each batch (a progress bar).

        Returns:
            The rewards of each, in input order, in [-0.5, 0.5]: float32 on the CPU, [response_tokens].
        """

        def score(batch: list[int]) -> list[Tensor]:
            better, worse = (
                scoring_log_probs(self.model, sequences, chunk_tokens=self.chunk_tokens)
                for sequences in ([pairs[index].better for index in batch], [pairs[index].worse for index in batch])
            )
            return [contrastive_rewards(high, low) for high, low in zip(better, worse, strict=True)]

        lengths = [max(len(pair.better.input_ids), len(pair.worse.input_ids)) for pair in pairs]
        return score_batches(lengths, self.batch_tokens, score, on_batch=on_batch)
