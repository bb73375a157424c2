"""What a response is worth: the sum or mean over its selected tokens of a log-probability or log-ratio."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sepo.objectives.sides import Side, present


@dataclass(frozen=True)
class ResponseReward:
    """Reward = scale * (sum or mean) over selected tokens of log pi_theta, or of log pi_theta - log pi_ref.

    Attributes:
        over_reference: True for the log-ratio to the reference (DPO), False for the log-probability (SimPO, SePO).
        average: True for the mean over the selected tokens, False for their sum.
        scale: the paper's beta or gamma; 1 where the link carries it (IPO, ORPO) or there is none (RRHF).
    """

    over_reference: bool
    average: bool
    scale: float = 1.0

    def unscaled(self, side: Side) -> Tensor:
        """[B] reward without ``scale``, in nats (per token when ``average``); penalties act on this."""
        values = side.policy
        if self.over_reference:
            # Token by token: the difference of two long sums would lose float32 digits.
            values = values - present(side.reference, "ref_chosen_logps and ref_rejected_logps")
        return side.total(values, average=self.average)

    def credit(self, side: Side) -> Tensor:
        """[B] scaled policy log-probability, every token weighted by its token reward.

        T-REG Eq. 1 up to its sign. The reference is left out as it is there: it is constant.
        """
        rewards = present(side.token_rewards, "chosen_token_rewards and rejected_token_rewards")
        return self.scale * side.total(rewards.detach() * side.policy, average=self.average)
