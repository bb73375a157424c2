"""Recipes of the training steps of `sepo pipeline`: base, oracle, oracle on exchanged pairs, and policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sepo.errors import SepoError
from sepo.recipe.keys import names_of
from sepo.recipe.oracle_stop import NEVER, stopping_keys
from sepo.recipe.resolve import REFUSED

REVERSED = "oracle_reversed"
"""Step, and directory, of the model trained on exchanged pairs, which the oracle is compared with."""
OWN_DPO = {"stage": "sepo", "objective": "dpo"}
"""DPO in sepo's step: the stage of the oracle."""
# Keys with which the model on exchanged pairs would read other pairs, or the oracle's outputs, or overwrite these.
_OF_ONE_ORACLE = ("dataset", "dataset_dir", "eval_dataset", "hub_model_id")
_OF_ONE_STEP = ("tokenized_path", "resume_from_checkpoint")
_COMPARED_WITH = ("oracle_base_model", "oracle_base_model_adapters")


def base_recipe(
    recipe: Mapping[str, Any], training: Mapping[str, Any], section: Mapping[str, Any], output: str
) -> dict[str, Any]:
    """Return the recipe of SFT on the sample's chosen responses (SePO, Eq. 23) or on ``base_dataset``.

    Args:
        recipe: the pipeline's recipe.
        training: the shared keys of training.
        section: the section ``base``.
        output: directory of the steps.
    """
    from sepo.hosts.llamafactory.sample import ANSWERS

    data = {"dataset": ANSWERS, "dataset_dir": f"{output}/sample"}
    if recipe.get("base_dataset"):
        folder = recipe.get("base_dataset_dir") or recipe.get("dataset_dir") or "data"
        data = {"dataset": recipe["base_dataset"], "dataset_dir": folder}
    return {**training, **data, "stage": "sft", "do_train": True, **section, "output_dir": f"{output}/base"}


def oracle_recipe(
    base: Mapping[str, Any] | None,
    training: Mapping[str, Any],
    section: Mapping[str, Any],
    output: str,
    *,
    stop: str = NEVER,
) -> dict[str, Any]:
    """Return the recipe of DPO from the base on the sample's pairs, with the base as reference (SePO, Eq. 5).

    Args:
        base: the recipe of the run whose model the oracle starts from, or None to start from the recipe's model.
        training: the shared keys of training.
        section: the section ``oracle``, without ``kind`` and ``stop``.
        output: directory of the steps.
        stop: the metric of early stopping, see ``stopping_keys``.

    Raises:
        SepoError: the host cannot train the oracle from the base's adapters.
    """
    from sepo.hosts.llamafactory.sample import PAIRS

    data = {"dataset": PAIRS, "dataset_dir": f"{output}/sample"}
    inherited: dict[str, Any] = {}
    if base is not None:
        kept = ("model_name_or_path", "model_revision", "template", "finetuning_type")
        inherited = {name: base[name] for name in kept if name in base}
    stage = _dpo_stage({**training, **section}, section)
    oracle = {
        **training,
        **data,
        **inherited,
        "do_train": True,
        **stopping_keys(stop, section, stage={**section, **stage}["stage"]),
        **section,
        **stage,
    }
    oracle["output_dir"] = f"{output}/oracle"
    return oracle if base is None else {**oracle, **continued(oracle, base)}


def reversed_recipe(oracle: Mapping[str, Any], output: str) -> dict[str, Any]:
    """Return the recipe of the oracle on the exchanged pairs of the sample, with the same base and reference."""
    from sepo.hosts.llamafactory.sample import REVERSED_PAIRS

    return {**oracle, "dataset": REVERSED_PAIRS, "output_dir": f"{output}/{REVERSED}"}


def check_reversed(oracle: Mapping[str, Any], section: Mapping[str, Any], policy: Mapping[str, Any]) -> None:
    """Raise if a key would be that of both models, or if the policy's scores name another model.

    Raises:
        SepoError: naming the key.
    """
    for names, given in ((_OF_ONE_ORACLE, section), (_OF_ONE_STEP, oracle)):
        for name in names:
            if given.get(name):
                raise SepoError(
                    f"{name} is set for the oracle, and with oracle.kind reversed it would be that of the model on "
                    "exchanged pairs, too, which is trained on those of the sample; remove it."
                )
    for name in _COMPARED_WITH:
        if policy.get(name):
            raise SepoError(
                f"{name} is set, but with oracle.kind reversed it names the model on exchanged pairs, which the "
                "pipeline trains; remove one of them."
            )


def _dpo_stage(recipe: Mapping[str, Any], section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stage of the oracle: DPO in sepo's step, which is faster than the host's and needs less memory.

    It is the host's own DPO if the recipe sets a loss or a key that only the host has.
    """
    if section.get("stage"):
        return {}
    if recipe.get("pref_loss") in (None, "sigmoid") and not any(recipe.get(name) for name in REFUSED):
        return {"stage": OWN_DPO["stage"], "objective": section.get("objective", OWN_DPO["objective"])}
    return {"stage": "dpo"}


def continued(recipe: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys with which a run starts from the model of a run before it, which is its reference, too.

    Args:
        recipe: keys and values of the run.
        before: the recipe of the run before.

    Raises:
        SepoError: the host cannot train the run from that model.
    """
    if not is_lora(before):
        return {"model_name_or_path": before["output_dir"]}
    adapters = trained_adapters(before)
    if not is_lora(recipe):
        raise SepoError(
            f"the run in {recipe['output_dir']} has finetuning_type {recipe['finetuning_type']}, but starts from the "
            f"adapters {adapters}, and LLaMA-Factory trains whole weights from whole models only; set the same "
            "finetuning_type for both."
        )
    if not recipe.get("quantization_bit"):
        return {"adapter_name_or_path": adapters, "create_new_adapter": True}
    if "," in adapters:
        raise SepoError(
            f"the run in {recipe['output_dir']} has quantization_bit {recipe['quantization_bit']}, but starts from "
            f"several adapters ({adapters}), and LLaMA-Factory applies one to a quantized model; remove "
            "create_new_adapter, or quantize none of the steps or all."
        )
    # The host cannot create a new adapter over a quantized model, and without ref_model its reference would be the raw
    # model instead of the one with the adapter.
    return {
        "adapter_name_or_path": adapters,
        "ref_model": recipe.get("model_name_or_path"),
        "ref_model_adapters": adapters,
        "ref_model_quantization_bit": recipe["quantization_bit"],
    }


def trained_adapters(recipe: Mapping[str, Any]) -> str:
    """Return the adapters of the model that a LoRA run trains: its own, after those below a new one."""
    below = names_of(recipe.get("adapter_name_or_path")) if recipe.get("create_new_adapter") else ()
    return ",".join([*below, str(recipe["output_dir"])])


def is_lora(recipe: Mapping[str, Any]) -> bool:
    """Return whether a run trains adapters; otherwise it writes a whole model."""
    return recipe.get("finetuning_type", "lora") == "lora"


def oracle_keys(
    oracle: Mapping[str, Any], negative: Mapping[str, Any] | None, *, base: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the policy's ``oracle_*`` keys, which name the outputs of the earlier steps.

    Args:
        oracle: the recipe of the oracle.
        negative: the recipe of the model on exchanged pairs; None if the oracle is compared with its base.
        base: the recipe of the run whose model the oracle starts from, or None.
    """
    model = oracle.get("model_name_or_path")  # checked with the step
    made = {base["output_dir"]} if base is not None else set()
    if not is_lora(oracle):
        made.add(oracle["output_dir"])
        model = model if negative is None else negative["output_dir"]
        made |= set() if negative is None else {model}
        keys = {"oracle_model": oracle["output_dir"], "oracle_base_model": model}
    else:
        keys = {"oracle_base_model": model, "oracle_model_adapters": trained_adapters(oracle)}
        if negative is not None:
            keys["oracle_base_model_adapters"] = trained_adapters(negative)
    if oracle.get("adapter_name_or_path") and negative is None:
        keys["oracle_base_model_adapters"] = ",".join(names_of(oracle["adapter_name_or_path"]))
    if oracle.get("quantization_bit"):
        keys["oracle_model_quantization_bit"] = oracle["quantization_bit"]
    if oracle.get("model_revision") and model not in made:
        keys["oracle_base_model_revision"] = oracle["model_revision"]
    return keys
