"""T-REG's token rewards: the same response scored after two prompts by one frozen model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from sepo.errors import SepoError
from sepo.forward.sequences import ScoredSequence, ScoringModel, score_batches, scoring_log_probs
from sepo.selection.scores import contrastive_rewards


@dataclass(frozen=True)
class ContrastivePair:
    """One response after the prompt that asks for a better answer and after the one that asks for a worse one.

    Args:
        better: prompt and response as token ids.
        worse: the other prompt with the same response.

    Raises:
        SepoError: the responses differ.
    """

    better: ScoredSequence
    worse: ScoredSequence

    def __post_init__(self) -> None:
        ours, theirs = (list(side.input_ids[side.response_start :]) for side in (self.better, self.worse))
        if ours != theirs:
            raise SepoError(
                f"the two prompts end in different responses ({len(ours)} and {len(theirs)} tokens), expected the same "
                "token ids: append the row's own response to both."
            )


class ContrastiveScorer:
    """sigmoid(log pi(y_t | x_better, y_<t) - log pi(y_t | x_worse, y_<t)) - 0.5 of every response token.

    Source: T-REG (arXiv 2412.02685) Eq. 3.

    Args:
        model: the scoring model.
        batch_tokens: padded tokens per batch, prompt and response counted.
        chunk_tokens: tokens whose logits exist at a time; None for 64 MiB of logits.
    """

    def __init__(self, model: ScoringModel, *, batch_tokens: int, chunk_tokens: int | None = None) -> None:
        self.model, self.batch_tokens, self.chunk_tokens = model, batch_tokens, chunk_tokens

    def score(self, pairs: Sequence[ContrastivePair], *, on_batch: Callable[[int], None] | None = None) -> list[Tensor]:
        """Score responses.

        Args:
            pairs: any number, in any order.
            on_batch: called with the number of responses after each batch (a progress bar).

        Returns:
            For each, in the order given, its rewards in [-0.5, 0.5]: float32 on the CPU, [response_tokens].
        """

        def score(batch: list[int]) -> list[Tensor]:
            better, worse = (
                scoring_log_probs(self.model, sequences, chunk_tokens=self.chunk_tokens)
                for sequences in ([pairs[index].better for index in batch], [pairs[index].worse for index in batch])
            )
            return [contrastive_rewards(ours, theirs) for ours, theirs in zip(better, worse, strict=True)]

        lengths = [max(len(pair.better.input_ids), len(pair.worse.input_ids)) for pair in pairs]
        return score_batches(lengths, self.batch_tokens, score, on_batch=on_batch)
