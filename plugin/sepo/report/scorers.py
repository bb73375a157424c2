"""The token scorer of a run or a store in words, and the store of its scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sepo.objectives import SCORERS

_WORDS = {
    "file": "file: scores in the data set",
    "random": "random: seeded by the run",
    "policy_ref": "policy_ref: reference against policy, at each step",
    "confidence": "confidence: tokens that the policy finds least probable, at each step",
    "probability": "probability: tokens that the policy finds least probable, at each step",
}


def scored_by(settings: Mapping[str, Any]) -> str | None:
    """Return the token scorer of a run in words; None if no tokens are scored.

    Args:
        settings: the run's settings file.
    """
    scorer = settings.get("token_scorer")
    oracle, rewards = settings.get("oracle"), settings.get("token_rewards")
    models = _pair(oracle) if isinstance(oracle, Mapping) else "?"
    several = settings.get("oracles")
    if isinstance(several, Mapping):
        models = _oracles(several)
    prompted = _called(rewards, "model") if isinstance(rewards, Mapping) and rewards.get("model") else models
    if scorer == "oracle":
        return f"oracle: {models}"
    if scorer == "contrastive":
        return f"contrastive: {prompted}"
    if scorer in (None, "none"):
        return f"token rewards: {prompted} (not used for selection)" if isinstance(rewards, Mapping) else None
    return _WORDS.get(str(scorer), str(scorer))


def is_live(settings: Mapping[str, Any]) -> bool:
    """Return whether the scores of a run are computed at the step that uses them."""
    scorer = SCORERS.get(str(settings.get("token_scorer")))
    return scorer is not None and scorer.live


def store_of(settings: Mapping[str, Any]) -> Path | None:
    """Return the directory of the store with the scores of a run's training rows, or None if they are not stored.

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
    """Return the scorer of a store in words, as named by the last run that used it."""
    scorer = names.get("scorer") or str(identity.get("scorer", "?"))
    return f"{scorer}: {names['models']}" if names.get("models") else scorer


def _pair(oracle: Mapping[str, Any]) -> str:
    return f"{_called(oracle, 'oracle')} over {_called(oracle, 'base')}"


def _oracles(oracles: Mapping[str, Any]) -> str:
    """Return several oracles, or what is made of the scores of one, in words."""
    members = oracles.get("members")
    named = [_pair(member) for member in members if isinstance(member, Mapping)] if isinstance(members, list) else []
    made = [] if oracles.get("checkpoints") is None else [f"mean of {oracles['checkpoints']} checkpoints"]
    made += [] if oracles.get("scores") in (None, "ratio") else [str(oracles["scores"])]
    words = f"mean of {'; '.join(named)}" if len(named) > 1 else (named or ["?"])[0]
    return f"{words} ({', '.join(made)})" if made else words


def _called(models: Mapping[str, Any], part: str) -> str:
    spec = models.get(part)
    if not isinstance(spec, Mapping):
        return "?"
    adapters = spec.get("adapters")
    words = [str(spec.get("model", "?")), *(map(str, adapters) if isinstance(adapters, list) else ())]
    bits = spec.get("quantization_bit")
    return " + ".join(words) + (f" ({bits} bit)" if bits else "")
