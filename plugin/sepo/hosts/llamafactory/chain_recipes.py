"""Recipes of the steps of `sepo pipeline`: the base, and runs that start from the model of a run before them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sepo.errors import SepoError
from sepo.recipe.keys import names_of


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
