"""Settings to the function that rewards responses: what is checked before weights are loaded, and what loads them."""

from __future__ import annotations

from typing import Any

import torch

from sepo.forward.sequences import OracleScorer
from sepo.judges import find_judge
from sepo.recipe.response_rewards import RewardSettings
from sepo.rewards.implicit import ImplicitRewards
from sepo.rewards.interface import ResponseRewards
from sepo.rewards.loading import load_reward_model
from sepo.rewards.reward_files import reward_files, reward_tokenizer
from sepo.rewards.verifiers import VerifierRewards
from sepo.scoring.hub import HubAccess
from sepo.scoring.model_files import spec_files
from sepo.scoring.models import load_scoring_models


def check_rewards(settings: RewardSettings, *, access: HubAccess) -> None:
    """Check the models of a judge before weights are loaded.

    Args:
        settings: how responses are judged.
        access: access to the hub.

    Raises:
        SepoError: files of a model are missing, or it cannot judge conversations.
    """
    if settings.model is not None:
        reward_tokenizer(settings.model, reward_files(settings.model, access=access), access=access)
    if settings.policy is not None:
        keys = settings.keys_of_models
        for side, spec in (("policy", settings.policy.oracle), ("reference", settings.policy.base)):
            spec_files(spec, key=keys[side], access=access)


def open_rewards(settings: RewardSettings, *, model_args: Any, device: torch.device) -> ResponseRewards:
    """Load the models of a judge and return the function from responses to rewards.

    Args:
        settings: how responses are judged.
        model_args: the host's model arguments, which give dtype, attention implementation and hub access.
        device: device on which models run.

    Raises:
        SepoError: as ``check_rewards``, which a run calls before it loads any model.
    """
    if settings.model is not None:
        return load_reward_model(
            settings.model, model_args=model_args, device=device, batch_tokens=settings.batch_tokens
        )
    if settings.policy is not None:
        policy, reference = load_scoring_models(settings.policy, model_args=model_args, device=device)
        return ImplicitRewards(
            OracleScorer(
                oracle=policy,
                base=reference,
                batch_tokens=settings.batch_tokens,
                chunk_tokens=settings.head_chunk_tokens,
            )
        )
    judge = find_judge(settings.judge, **settings.options)
    return VerifierRewards(judge, name=settings.judge, column=settings.expected_column)
