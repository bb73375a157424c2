"""The reward of a response: the sum or mean of log-probabilities or log-ratios over its selected tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sepo.objectives.sides import Side, present


@dataclass(frozen=True)
class ResponseReward:
    """Reward = scale * (sum or mean) over selected tokens of log pi_theta, or of log pi_theta - log pi_ref.

    Token weights apply to both: sum w x, or sum w x / sum w.

    Attributes:
        over_reference: True for the log-ratio to the reference (DPO), False for the log-probability (SimPO, SePO).
        average: True for the mean over the selected tokens, False for their sum.
        scale: the paper's beta or gamma; 1 if it is part of the link (IPO, ORPO) or there is none (RRHF).
    """

    over_reference: bool
    average: bool
    scale: float = 1.0

    def unscaled(self, side: Side) -> Tensor:
        """Return the reward [B] without ``scale``, in nats (per token if ``average``), to which penalties apply."""
        values = side.policy
        if self.over_reference:
            # Token by token: the difference of two long sums would lose float32 digits.
            values = values - present(side.reference, "ref_chosen_logps and ref_rejected_logps")
        return side.total(values, average=self.average)

    def credit(self, side: Side) -> Tensor:
        """Return the scaled policy log-probability [B], with every token weighted by its token reward.

        T-REG Eq. 1 up to the sign. As there, the reference is left out, since it is constant.
        """
        rewards = present(side.token_rewards, "chosen_token_rewards and rejected_token_rewards")
        return self.scale * side.total(rewards.detach() * side.policy, average=self.average)
