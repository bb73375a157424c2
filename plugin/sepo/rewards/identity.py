"""What rewards depend on, by content: stored rewards are found by it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from sepo.recipe.response_rewards import RewardSettings
from sepo.rewards.reward_files import KEY, RewardFiles, reward_files, reward_tokenizer
from sepo.scoring.hub import HubAccess
from sepo.scoring.stored_columns import reader_identity, spec_identity


def rewards_identity(settings: RewardSettings, *, access: HubAccess) -> dict[str, Any]:
    """Return everything that the rewards of a response depend on but the dtype of the run, as JSON.

    Models are identified by their weights, heads and adapters, and a reward model by its tokenizer and chat template
    as well; names and paths have no part in it.

    Args:
        settings: how responses are judged.
        access: access to the hub.

    Raises:
        SepoError: as ``check_rewards``.
    """
    if settings.model is not None:
        files = reward_files(settings.model, access=access)
        tokenizer = reward_tokenizer(settings.model, files, access=access)
        return {
            "judge": settings.judge,
            "model": spec_identity(settings.model, key=KEY, access=access, need="reward"),
            "code": _code_digest(files),
            **reader_identity(tokenizer, template=tokenizer.chat_template),
        }
    if settings.policy is not None:
        models = {"policy": settings.policy.oracle, "reference": settings.policy.base}
        keys = settings.keys_of_models
        return {
            "judge": settings.judge,
            **{side: spec_identity(spec, key=keys[side], access=access) for side, spec in models.items()},
        }
    return settings.as_dict()


def _code_digest(files: RewardFiles) -> str | None:
    """Return a digest of the modules of a model with code of its own."""
    if not files.remote_code:
        return None
    digest = hashlib.sha256()
    for file in sorted(Path(files.spec.model).glob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
