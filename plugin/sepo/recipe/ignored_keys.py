"""Keys that have no effect in a sepo stage, and the log line about them: LLaMA-Factory's, as in its own DPO, and those
of `sepo pairs`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from sepo.recipe.keys import SAMPLING_KEYS

_PREDICTIONS = "evaluations return no predictions; sepo eval generates and compares"
_OTHER_STAGE = "it belongs to another stage"
_SAMPLING = "sepo pairs reads it, to sample and judge responses"

WITHOUT_EFFECT = {
    "packing": "pairs are not packed: their padding is not computed in any case (the host truncates to cutoff_len - 1 "
    "with it)",
    "compute_accuracy": "it measures the accuracy of tokens in SFT; rewards/accuracies is logged in any case",
    "do_predict": _PREDICTIONS,
    "eval_num_beams": _PREDICTIONS,
    "generation_max_length": _PREDICTIONS,
    "generation_num_beams": _PREDICTIONS,
    "generation_config": _PREDICTIONS,
    "batch_eval_metrics": _PREDICTIONS,
    "include_for_metrics": _PREDICTIONS,
    "sortish_sampler": "the host does not read it; set train_sampling_strategy: group_by_length (in LLaMA-Factory "
    "0.9.4 group_by_length: true)",
    "asft_alpha": _OTHER_STAGE,
    "eaft_alpha": _OTHER_STAGE,
    "kto_chosen_weight": _OTHER_STAGE,
    "kto_rejected_weight": _OTHER_STAGE,
    "ppo_buffer_size": _OTHER_STAGE,
    "ppo_epochs": _OTHER_STAGE,
    "ppo_score_norm": _OTHER_STAGE,
    "ppo_target": _OTHER_STAGE,
    "ppo_whiten_rewards": _OTHER_STAGE,
    "reward_model": _OTHER_STAGE,
    "reward_model_adapters": _OTHER_STAGE,
    "reward_model_quantization_bit": _OTHER_STAGE,
    "reward_model_type": _OTHER_STAGE,
}
"""Why a key of the host has no effect. Keys that would change results if they were supported are refused instead."""

_ALL = {**WITHOUT_EFFECT, **dict.fromkeys(SAMPLING_KEYS, _SAMPLING)}


def ignored_notes(keys: Collection[str], reasons: Mapping[str, str] = _ALL) -> tuple[str, ...]:
    """Return one log line for each reason for which keys of a recipe have no effect.

    Args:
        keys: the keys that the recipe sets to other values than their off values.
        reasons: why a key has no effect, by key.
    """
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        if name in keys:
            by_reason.setdefault(reason, []).append(name)
    return tuple(f"{_listed(names)} no effect in this stage: {reason}." for reason, names in by_reason.items())


def _listed(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last} are set, but have" if others else f"{last} is set, but has"
