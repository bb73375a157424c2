"""Names of the models and the data of a score store in a recipe, for `sepo scores ls`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sepo.recipe.model_specs import MAIN, ModelSpec, OracleSpec
from sepo.recipe.settings import RunSettings
from sepo.scoring.hub import commits
from sepo.text.template_tokens import TEMPLATE_TOKENS


def _model_name(spec: ModelSpec) -> str:
    bits = f" ({spec.quantization_bit} bit)" if spec.quantization_bit else ""
    named = zip((spec.model, *spec.adapters), (spec.revision, *spec.revisions_of_adapters), strict=True)
    return " + ".join(_with_commit(name, revision) for name, revision in named) + bits


def _with_commit(name: str, revision: str | None) -> str:
    """Return a name with its revision and commit if it is one of the hub."""
    commit = commits().get(name, {}).get(revision or MAIN)
    if commit is None:
        return name
    at = [] if revision in (None, commit) else [revision]
    return f"{name} ({', '.join([*at, f'commit {commit[:12]}'])})"


def oracle_name(oracle: OracleSpec) -> str:
    """Return the names of an oracle and its base."""
    return f"{_model_name(oracle.oracle)} over {_model_name(oracle.base)}"


def store_names(
    settings: RunSettings, what: str, *, data_args: Any, template: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Return the names of a store's parts in the recipe of this run.

    Args:
        settings: the run's settings.
        what: ``token_scores``, ``token_reward_scores``, ``reference_scores`` or ``registered_scores``, the key in the
            run's settings file.
        data_args: the host's data arguments.
        template: the tokens of the chat template by their texts (``TemplateTokens.as_texts``), or None.

    Returns:
        ``scorer``, ``models``, ``dataset`` and, as JSON, the template's tokens, if there are any; the run adds the
        ``part`` of the data (train, eval).
    """
    models = ""
    if what == "reference_scores" and settings.precomputed_reference is not None:
        models = _model_name(settings.precomputed_reference.model)
    elif what == "token_reward_scores" and settings.token_rewards is not None:
        models = "" if settings.token_rewards.model is None else _model_name(settings.token_rewards.model)
    elif what == "token_scores" and settings.oracles is not None:
        oracles = settings.oracles
        made = [] if oracles.checkpoints is None else [f"{oracles.checkpoints} checkpoints"]
        made += [] if oracles.scores == "ratio" else [oracles.scores]
        models = "; ".join(map(oracle_name, oracles.members)) + (f" ({', '.join(made)})" if made else "")
    scorers = {
        "token_scores": "oracle",
        "reference_scores": "reference",
        "token_reward_scores": "contrastive",
        "registered_scores": settings.method.scorer,
    }
    data = data_args.dataset or []
    return {
        "scorer": scorers[what],
        "models": models,
        "dataset": data if isinstance(data, str) else ", ".join(data),
        **({} if template is None else {TEMPLATE_TOKENS: json.dumps(template, ensure_ascii=False)}),
    }
