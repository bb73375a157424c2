"""Who scored the tokens of a run or a store: in words, and in which of its stores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sepo.objectives import SCORERS

_WORDS = {
    "file": "file: the data set's own scores",
    "random": "random: by the run's seed",
    "policy_ref": "policy_ref: the reference against the policy, at each step",
    "confidence": "confidence: what the policy expects least, at each step",
}


def scored_by(settings: Mapping[str, Any]) -> str | None:
    """The token scorer of a run in words; None where nothing is scored.

    Args:
        settings: the run's settings file.
    """
    scorer = settings.get("token_scorer")
    oracle, rewards = settings.get("oracle"), settings.get("token_rewards")
    models = f"{_called(oracle, 'oracle')} over {_called(oracle, 'base')}" if isinstance(oracle, Mapping) else "?"
    prompted = _called(rewards, "model") if isinstance(rewards, Mapping) and rewards.get("model") else models
    if scorer == "oracle":
        return f"oracle: {models}"
    if scorer == "contrastive":
        return f"contrastive: {prompted}"
    if scorer in (None, "none"):
        return f"token rewards: {prompted} (they select nothing)" if isinstance(rewards, Mapping) else None
    return _WORDS.get(str(scorer), str(scorer))


def is_live(settings: Mapping[str, Any]) -> bool:
    """Whether the scores of a run are those of the step that used them."""
    scorer = SCORERS.get(str(settings.get("token_scorer")))
    return scorer is not None and scorer.live


def store_of(settings: Mapping[str, Any]) -> Path | None:
    """The folder of the store that has the scores of a run's training rows, or None where they are in none.

    Args:
        settings: the run's settings file.
    """
    scorer = settings.get("token_scorer")
    if scorer == "oracle":
        roles = ["token_scores"]
    elif scorer == "contrastive":
        roles = ["token_reward_scores"]
    elif scorer in (None, "none"):
        roles = ["token_reward_scores", "token_scores"]
    else:
        roles = [] if str(scorer) in SCORERS else ["registered_scores"]
    for role in roles:
        stores = settings.get(role)
        if isinstance(stores, Mapping) and stores:
            path = stores.get("train", next(iter(stores.values())))
            if isinstance(path, str) and path:
                return Path(path)
    return None


def store_scored_by(names: Mapping[str, str], identity: Mapping[str, Any]) -> str:
    """The scorer of a store in words, as the last run that used it called it."""
    scorer = names.get("scorer") or str(identity.get("scorer", "?"))
    return f"{scorer}: {names['models']}" if names.get("models") else scorer


def _called(models: Mapping[str, Any], part: str) -> str:
    spec = models.get(part)
    if not isinstance(spec, Mapping):
        return "?"
    adapters = spec.get("adapters")
    words = [str(spec.get("model", "?")), *(map(str, adapters) if isinstance(adapters, list) else ())]
    bits = spec.get("quantization_bit")
    return " + ".join(words) + (f" ({bits} bit)" if bits else "")
