"""Parts of a run that all hosts share: the collator of its method, and the files that record its settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sepo import __version__
from sepo.recipe.rto import RtoSettings
from sepo.recipe.settings import RunSettings
from sepo.runs.log_reader import SETTINGS_FILE
from sepo.runs.provenance import write_provenance
from sepo.scoring.hub import commits
from sepo.text.template_tokens import TEMPLATE_TOKENS
from sepo.training.collators import selecting_collator
from sepo.training.float_columns import ReferenceCollator
from sepo.training.reward_columns import RewardCollator


def method_collator(collator: Any, settings: RunSettings) -> Any:
    """Wrap a collator of pairs so that its batches include the columns that the method reads.

    Args:
        collator: returns ``input_ids``, ``attention_mask`` and ``labels``, each [2B, T], the first B rows chosen.
        settings: the run's settings.
    """
    collator = selecting_collator(collator, method=settings.method)
    if settings.method.needs_token_rewards and settings.token_rewards is not None:
        collator = RewardCollator(collator, origin=settings.token_rewards.origin)
    if settings.precomputed_reference is not None:
        collator = ReferenceCollator(collator)
    return collator


def write_settings(
    folder: Path,
    settings: RunSettings | RtoSettings,
    stores: Mapping[str, Mapping[str, str]],
    *,
    recipe: Mapping[str, Any],
    template: Mapping[str, Any] | None = None,
) -> None:
    """Write the settings, recipe, package versions, score stores and hub commits of a run next to its weights.

    Args:
        folder: the run's ``output_dir``.
        settings: the run's settings.
        stores: directories of the score stores, by scorer, then by data set.
        recipe: the recipe's keys and values.
        template: the tokens that are not selected, by their texts (``TemplateTokens.as_texts``), or None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {what: {name: str(Path(path).resolve()) for name, path in by.items()} for what, by in stores.items()}
    record = {"sepo": __version__, **settings.as_dict(), "token_scores": {}, **found}
    if template is not None and isinstance(settings, RunSettings) and settings.method.selector is not None:
        record[TEMPLATE_TOKENS] = dict(template)
    if commits():
        record["commits"] = commits()
    (folder / SETTINGS_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    write_provenance(folder, recipe)
