"""The policy of a config by name and revision, and checks of the models that a run loads, before any is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sepo.recipe.model_specs import ModelSpec
from sepo.recipe.reference import OWN_START
from sepo.recipe.settings import RunSettings
from sepo.scoring.hub import HubAccess
from sepo.scoring.model_files import check_experts, scoring_models, spec_files

BASE_MODEL = "base_model"
_TO_SEND_TOKEN = "set HF_TOKEN or run: hf auth login"


def access_in(cfg: Mapping[str, Any]) -> HubAccess:
    """Return the access to the hub of a config: the token of the environment or of a login."""
    return HubAccess(trust_remote_code=bool(cfg.get("trust_remote_code")), to_send_token=_TO_SEND_TOKEN)


def check_policy(cfg: Mapping[str, Any], *, with_experts: bool) -> None:
    """Raise if the policy does not exist or has no router loss to add, before Axolotl reads its configuration.

    Args:
        cfg: the raw config.
        with_experts: whether the run adds the loss of a router.

    Raises:
        SepoError: naming the key, the name and the revision.
    """
    if cfg.get(BASE_MODEL) and _of_one_repository(cfg, "base_model_config"):
        spec_files(_policy(cfg), key=BASE_MODEL, access=access_in(cfg), need="config")
        if with_experts:
            check_experts(_policy(cfg), key=BASE_MODEL, access=access_in(cfg))


def check_models(cfg: Any, models: Iterable[tuple[str, ModelSpec]]) -> None:
    """Raise if a model of the run is missing, and make Axolotl load the policy that was looked up.

    Axolotl loads the tokenizer, the policy and its reference one after another, between which a branch may move.

    Args:
        cfg: the validated config; its ``revision_of_model`` becomes the commit of the policy.
        models: the other models, each with the key that names it.

    Raises:
        SepoError: naming the key, the name and the revision.
    """
    access = access_in(cfg)
    if _of_one_repository(cfg, "base_model_config"):
        model, _ = spec_files(_policy(cfg), key=BASE_MODEL, access=access)
        # Axolotl applies the revision to the repository of the tokenizer as well.
        if model.commit is not None and _of_one_repository(cfg, "tokenizer_config"):
            cfg.revision_of_model = model.commit
    for key, spec in models:
        spec_files(spec, key=BASE_MODEL if key == OWN_START else key, access=access)


def models_of(settings: RunSettings) -> list[tuple[str, ModelSpec]]:
    """Return the models of a run on pairs beside the policy, each with the key that names it."""
    reference = [] if settings.ref_model is None else [("ref_model", settings.ref_model)]
    return [*scoring_models(settings), *reference]


def reference_revisions(given: Mapping[str, Any]) -> dict[str, str]:
    """Return the revisions of a reference that the block does not set: those of other repositories than the policy's.

    The revision of the policy names a commit or branch of its own repository only.

    Args:
        given: the keys of the run under the names that all hosts share.
    """
    models = {
        "ref_model": given.get("ref_model") not in (None, given.get(OWN_START)),
        "ref_model_adapters": bool(given.get("ref_model_adapters")),
    }
    return {
        f"{key}_revision": "main" for key, other in models.items() if other and given.get(f"{key}_revision") is None
    }


def _of_one_repository(cfg: Mapping[str, Any], key: str) -> bool:
    """Return whether a key names no other repository or directory than ``base_model``."""
    return cfg.get(key) in (None, cfg.get(BASE_MODEL))


def _policy(cfg: Mapping[str, Any]) -> ModelSpec:
    return ModelSpec(str(cfg[BASE_MODEL]), revision=cfg.get("revision_of_model"))
