"""Rewards of sampled responses: one number for each, by a verifier, a reward model or the policy itself.

``resolve_rewards`` reads the recipe, ``check_rewards`` checks what can be checked before weights are loaded, and
``open_rewards`` loads the models and returns the function from responses to rewards.
"""

from sepo.recipe.response_rewards import RewardSettings, resolve_rewards
from sepo.rewards.constant import ConstantRewardCheck
from sepo.rewards.identity import rewards_identity
from sepo.rewards.interface import ResponseRewards, SampledResponse
from sepo.rewards.resolve import check_rewards, open_rewards

__all__ = [
    "ConstantRewardCheck",
    "ResponseRewards",
    "RewardSettings",
    "SampledResponse",
    "check_rewards",
    "open_rewards",
    "resolve_rewards",
    "rewards_identity",
]
