"""DPO's implicit reward of the policy: its log-ratio to the reference, summed over the response."""

from __future__ import annotations

from collections.abc import Sequence

from sepo.forward.sequences import OracleScorer, ScoredSequence
from sepo.rewards.interface import SampledResponse, finite_rewards


class ImplicitRewards:
    """Reward sum_t log pi(y_t) - log pi_ref(y_t), in nats: DPO's implicit reward divided by β (2305.18290, Eq. 5).

    The sum is over the sampled tokens, the stop token included; the partition function of the prompt, which is the same
    for all its responses, is left out as there.

    Args:
        scorer: scorer of the policy over its reference.
    """

    def __init__(self, scorer: OracleScorer) -> None:
        self._scorer = scorer

    def __call__(self, responses: Sequence[SampledResponse]) -> list[float]:
        """Return the rewards; see ``ResponseRewards``."""
        rows = [ScoredSequence((*each.prompt_ids, *each.response_ids), len(each.prompt_ids)) for each in responses]
        rewards = [float(scores.double().sum()) for scores in self._scorer.score(rows)]
        return finite_rewards(responses, rewards, judge="the policy's log-ratio to its reference")
