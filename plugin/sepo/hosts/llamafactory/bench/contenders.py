"""Contenders of the benchmark: the host's losses and sepo's stages, each with the recipe that would train it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sepo.errors import SepoError, nearest
from sepo.recipe.keys import SEPO_KEYS
from sepo.recipe.reference import base_of_reference_adapters
from sepo.recipe.resolve import resolve
from sepo.recipe.settings import RunSettings
from sepo.recipe.stage_names import is_sepo_stage
from sepo.recipe.stages import find_stage, registered_keys, selection_parts, with_stage_defaults

HOST_DPO, HOST_SIMPO, OWN = "host_dpo", "host_simpo", "recipe"

CONTENDERS: Mapping[str, Mapping[str, str]] = {
    HOST_DPO: {"stage": "dpo", "pref_loss": "sigmoid"},
    HOST_SIMPO: {"stage": "dpo", "pref_loss": "simpo"},
    "sepo": {"stage": "sepo"},
    "dpo": {"stage": "sepo", "objective": "dpo"},
    "simpo": {"stage": "sepo", "objective": "simpo"},
    "selective_dpo": {"stage": "selective_dpo"},
    "minor_dpo": {"stage": "minor_dpo"},
    "treg": {"stage": "treg"},
}
"""Contenders by their names in ``--stages``, with the keys that replace the method of the user's recipe."""

_LABELS = {
    HOST_DPO: "dpo (LLaMA-Factory)",
    HOST_SIMPO: "simpo (LLaMA-Factory)",
    "dpo": "dpo (sepo)",
    "simpo": "simpo (sepo)",
}
_HOST_METHOD_KEYS = (
    "stage", "pref_loss", "pref_beta", "simpo_gamma", "dpo_label_smoothing", "pref_bco_weight", "ld_alpha",
)  # fmt: skip
_WITHOUT_EFFECT_IN_HOST = ("moe_aux_loss_coef",)  # its DPO would compute the router loss without adding it
_NO_METHOD = ("head_chunk_tokens", "kept_activations_mb", "token_scores_dir", "score_batch_tokens")
_REFERENCE_KEYS = ("ref_model", "ref_model_adapters", "ref_model_quantization_bit")
_RATIOS = ("select_ratio", "chosen_select_ratio", "rejected_select_ratio")
_RANDOM_ORACLE = {"oracle_model": "random scores (oracle)", "oracle_base_model": "random scores (base)"}
# Losses that the host and sepo both have, with common settings, so that their values can be compared.
_FAMILIES: tuple[tuple[tuple[str, str], dict[str, float]], ...] = (
    ((HOST_DPO, "dpo"), {"pref_beta": 0.1, "dpo_label_smoothing": 0.0}),
    ((HOST_SIMPO, "simpo"), {"pref_beta": 2.0, "simpo_gamma": 1.0}),
)
_HOST_SIMPO_DEFAULTS = {"pref_beta": 0.1, "simpo_gamma": 0.5}


@dataclass(frozen=True)
class Contender:
    """A method that is compared.

    Args:
        name: its name in ``--stages``.
        label: its name in the table.
        host_recipe: the keys that the host parses.
        settings: settings of the sepo stage, or None for the host's own loss.
    """

    name: str
    label: str
    host_recipe: dict[str, Any]
    settings: RunSettings | None

    @property
    def needs_reference_model(self) -> bool:
        """Whether a reference runs in the step."""
        if self.settings is None:
            return self.host_recipe["pref_loss"] not in ("simpo", "orpo")
        return self.settings.runs_reference


def plan_contenders(
    recipe: Mapping[str, Any], *, host_keys: tuple[str, ...], names: Sequence[str] | None = None
) -> list[Contender]:
    """Derive the recipe of each contender from the user's.

    The recipe's own method keeps all its settings. The others have their defaults, except for the selection ratios,
    which all contenders that select tokens share.

    Args:
        recipe: keys and values, from ``measured_recipe``.
        host_keys: all keys that the host accepts.
        names: a subset of the contenders, in this order; None for all, and ``recipe`` if the recipe's own method is
            not one of them.

    Returns:
        The resolved contenders.

    Raises:
        SepoError: a name is unknown or repeated, or the recipe is invalid for its own stage.
    """
    own = own_name(recipe)
    known = (*CONTENDERS, *((OWN,) if own == OWN else ()))
    for name in names or ():
        if name not in known:
            raise SepoError(f"--stages: unknown '{name}'.{nearest(name, known)} Known: {', '.join(known)}.")
    if names is not None and (not names or len(set(names)) != len(names)):
        raise SepoError(f"--stages is {','.join(names)!r}; different names out of {', '.join(known)} are expected.")
    return [_contender(name, recipe, own=own, host_keys=host_keys) for name in names or known]


def own_name(recipe: Mapping[str, Any]) -> str:
    """Return the contender whose method is the recipe's: a name of ``CONTENDERS``, or ``recipe``."""
    stage = str(recipe["stage"])
    if not is_sepo_stage(stage):
        losses = {keys["pref_loss"]: name for name, keys in CONTENDERS.items() if keys["stage"] == "dpo"}
        return losses.get(str(recipe.get("pref_loss") or "sigmoid"), OWN)
    given = with_stage_defaults(recipe)
    objective = str(given["objective"])
    alone = {"objective": objective}
    if all(given.get(key) is None for key in ("token_scorer", "token_weight")) or (
        ":" not in objective and selection_parts(given) == selection_parts(alone)
    ):
        for name, keys in CONTENDERS.items():
            if stage == keys["stage"] and objective == keys.get("objective", find_stage(stage).objective):
                return name
    return OWN


def _contender(name: str, recipe: Mapping[str, Any], *, own: str, host_keys: tuple[str, ...]) -> Contender:
    method_keys = (*SEPO_KEYS, *_HOST_METHOD_KEYS, *_REFERENCE_KEYS)
    if is_sepo_stage(str(recipe["stage"])):
        method_keys += tuple(registered_keys(with_stage_defaults(recipe)))
    method = {key: value for key, value in recipe.items() if key in method_keys and key not in _NO_METHOD}
    common = {key: value for key, value in recipe.items() if key not in method}
    reference = {key: method.pop(key) for key in _REFERENCE_KEYS if key in method}
    keys = method if name == own else dict(CONTENDERS[name])
    keys |= _family_keys(name, own=own, recipe=recipe)
    label = _LABELS.get(name, name)
    if name == OWN:
        label = f"recipe ({_described(recipe)})"
    if not is_sepo_stage(str(keys["stage"])):
        chosen = {key: value for key, value in common.items() if key not in (*SEPO_KEYS, *_WITHOUT_EFFECT_IN_HOST)}
        loss = str(keys.setdefault("pref_loss", "sigmoid"))
        host: Any = {**chosen, **keys}
        if loss not in ("simpo", "orpo"):
            host |= {**reference, **base_of_reference_adapters({**host, **reference})}
        return Contender(name, label, host, None)
    given = {**common, **keys}
    if name != own:
        given |= _shared_ratios(given, recipe)
    if _needs_oracle(given) and not any(map(given.get, ("oracle_model", "oracle_model_adapters", "oracles"))):
        given |= _RANDOM_ORACLE
    host, settings = resolve(given, host_keys=host_keys)
    if settings.method.needs_reference and reference:
        host, settings = resolve({**given, **reference}, host_keys=host_keys)
    return Contender(name, label, host, settings)


def _described(recipe: Mapping[str, Any]) -> str:
    stage = str(recipe["stage"])
    if not is_sepo_stage(stage):
        return f"{recipe.get('pref_loss')}, LLaMA-Factory"
    given = with_stage_defaults(recipe)
    scorer = given.get("token_scorer")
    return f"{stage}: {given['objective']}" + (f", {scorer}" if scorer else "")


def _family_keys(name: str, *, own: str, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings shared by the host's and sepo's version of a loss: the recipe's if it has this loss."""
    for family, defaults in _FAMILIES:
        if name in family:
            start = _HOST_SIMPO_DEFAULTS if own == HOST_SIMPO and name in (HOST_SIMPO, "simpo") else defaults
            return {**start, **{key: recipe[key] for key in defaults if own in family and key in recipe}}
    return {}


def _shared_ratios(given: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    if selection_parts({"objective": with_stage_defaults(given)["objective"]})[0] == "none":
        return {}
    return {key: recipe[key] for key in _RATIOS if key in recipe}


def _needs_oracle(given: Mapping[str, Any]) -> bool:
    complete = with_stage_defaults(given)
    return selection_parts(complete)[0] == "oracle" or complete.get("treg_rewards") == "oracle"
