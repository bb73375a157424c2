"""LLaMA-Factory's access to a hub, and its model arguments with names that are resolved to files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llamafactory.extras.misc import use_modelscope, use_openmind
from llamafactory.hparams import ModelArguments

from sepo.recipe.keys import as_flag
from sepo.recipe.model_specs import ModelSpec
from sepo.recipe.reference import OWN_START, own_start, reference_spec
from sepo.scoring.hub import Hub, HubAccess, hub_access
from sepo.scoring.model_files import spec_files

_TOKENS: dict[Hub, str] = {
    "huggingface": "hf_hub_token",
    "modelscope": "ms_hub_token",
    "openmind": "om_hub_token",
}


def access_in(given: Mapping[str, Any]) -> HubAccess:
    """Return the access to the hub that a recipe and the environment set.

    Args:
        given: the recipe's keys and values.
    """
    hub: Hub = "modelscope" if use_modelscope() else "openmind" if use_openmind() else "huggingface"
    token = given.get(_TOKENS[hub]) or None
    return HubAccess(
        hub,
        token=token if token is None or token is True else str(token),
        cache_dir=given.get("cache_dir") or None,
        trust_remote_code=as_flag("trust_remote_code", given.get("trust_remote_code") or False),
    )


@hub_access.register(ModelArguments)
def _access_of(model_args: ModelArguments) -> HubAccess:
    return access_in(vars(model_args))


def policy_in(given: Mapping[str, Any]) -> ModelSpec:
    """Return the model that the policy starts from, without adapters in an ``adapter_folder``, which the host finds."""
    spec = own_start(given)
    return spec.with_adapters(0) if given.get("adapter_folder") else spec


def use_resolved_files(model_args: Any, finetuning_args: Any, given: Mapping[str, Any], *, score_only: bool) -> None:
    """Change parsed arguments such that the host loads the files that were resolved, and looks up nothing anew.

    The policy keeps its hub name, which trained adapters record, with its commit as revision. Adapters and the
    reference become local directories: the host would look up the policy's commit in their repositories.

    Args:
        model_args: the host's model arguments.
        finetuning_args: the host's finetuning arguments.
        given: the recipe's keys and values.
        score_only: whether the run stops after scoring, so that the reference stays as it is.

    Raises:
        SepoError: If files are missing.
    """
    access = access_in(given)
    model, adapters = spec_files(policy_in(given), key=OWN_START, access=access, need="tokenizer")
    if access.hub != "huggingface":
        model_args.model_name_or_path = str(model.folder)  # as the host does when it loads
    elif model.commit is not None and not model_args.adapter_folder:
        model_args.model_revision = model.commit
    if adapters:
        model_args.adapter_name_or_path = [str(adapter.folder) for adapter in adapters]
    if finetuning_args.ref_model and not score_only:
        key, spec = reference_spec({**given, "ref_model": finetuning_args.ref_model})
        reference, applied = spec_files(spec, key=key, access=access)
        finetuning_args.ref_model = str(reference.folder)
        if applied:
            finetuning_args.ref_model_adapters = ",".join(str(adapter.folder) for adapter in applied)
