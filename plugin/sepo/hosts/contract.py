"""Contract of a host: the non-public names, with their parameters, that an adapter relies on.

``PATCHES.md`` documents for each name why and how it is used, and which test detects a change of its behaviour; its
first column holds the names of ``Entry``. Each host has its own contract next to its adapter; this module has the
shared types, the check and the names that all hosts rely on.
"""

from __future__ import annotations

import dis
import functools
import importlib
import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One line of `sepo doctor`.

    Args:
        good: whether the check passed.
        text: what was found, and what to do if the check failed.
        note: whether a passed check found something that the user should know, such as a version that is not tested.
    """

    good: bool
    text: str
    note: bool = False


@dataclass(frozen=True)
class Entry:
    """A name that is rebound, subclassed, called or read.

    Args:
        module: the module that defines it.
        path: the attribute in the module, dotted for an attribute of a class.
        parameters: parameters that the function or class must accept, in any order.
        on_instances: whether only instances have the attribute; it is then annotated in the class, or read or set by
            one of its methods.
        versions: versions of the module's distribution that have the name (PEP 440, such as ``>=0.9.5``); empty for
            all supported ones.
    """

    module: str
    path: str
    parameters: tuple[str, ...] = ()
    on_instances: bool = False
    versions: str = ""

    def __str__(self) -> str:
        return f"{self.module}.{self.path}"

    def concerns(self, version: str | None) -> bool:
        """Return whether a version of the distribution must have the name.

        Args:
            version: the version; None if it is unknown, which counts as the newest.
        """
        if not self.versions:
            return True
        from packaging.specifiers import SpecifierSet

        return SpecifierSet(self.versions).contains(version or _NEWEST, prereleases=True)


_NEWEST = "9999"


def concerning(entries: Iterable[Entry]) -> list[Entry]:
    """Return the entries of a contract that concern the installed versions."""
    return [entry for entry in entries if entry.concerns(_version(entry.module.split(".")[0]))]


@functools.cache
def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # on the path, but not installed
        return None


def gap(entry: Entry) -> str | None:
    """Look up an entry of a contract in the installed packages.

    Args:
        entry: the entry; its module is imported.

    Returns:
        A description of what is missing, or None.
    """
    owner, _, name = entry.path.rpartition(".")
    try:
        holder: Any = importlib.import_module(entry.module)
        for part in filter(None, owner.split(".")):
            holder = getattr(holder, part)
        if entry.on_instances:
            return None if _is_assigned(holder, name) else f"{entry} is not an attribute of its instances"
        found = getattr(holder, name)
    except (ModuleNotFoundError, AttributeError) as error:
        return f"{entry} does not exist ({error})"
    if not entry.parameters:
        return None
    has = inspect.signature(found).parameters
    kinds = {parameter.kind for parameter in has.values()}
    if {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} <= kinds:  # passes everything on
        return None
    absent = [parameter for parameter in entry.parameters if parameter not in has]
    return f"{entry} does not take {', '.join(absent)}" if absent else None


def _is_assigned(kind: type, name: str) -> bool:
    """Return whether a class annotates an attribute, or one of its functions, wrapped or not, reads or sets it."""
    return any(
        name in vars(base).get("__annotations__", {}) or any(_uses(member, name) for member in vars(base).values())
        for base in kind.__mro__
    )


_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD", "STORE_ATTR")


def _uses(member: Any, name: str) -> bool:
    """Return whether the compiled code of a function has an attribute of this name."""
    code = getattr(inspect.unwrap(member) if callable(member) else member, "__code__", None)
    return code is not None and any(
        instruction.opname in _ATTRIBUTE and instruction.argval == name for instruction in dis.get_instructions(code)
    )


def check(entries: Sequence[Entry], *, expected: str) -> list[Finding]:
    """Look up the names of a contract.

    Args:
        entries: the contract.
        expected: the host and the supported versions, for the message.

    Returns:
        One failed finding per name that is missing or has other parameters, or a single passed finding.
    """
    relied_on = concerning(entries)
    absent = [found for found in map(gap, relied_on) if found is not None]
    if absent:
        return [Finding(False, f"{found}; use {expected}") for found in absent]
    return [Finding(True, f"all {len(relied_on)} names of the host's contract exist")]


SHARED = (
    Entry("transformers.utils.hub", "_is_offline_mode", versions="<5"),
    Entry("transformers.integrations.deepspeed", "_hf_deepspeed_config_weak_ref"),
    Entry("transformers.integrations.deepspeed", "unset_hf_deepspeed_config"),
    Entry("transformers.modeling_utils", "is_fsdp_enabled"),
    Entry("transformers", "PreTrainedModel.get_output_embeddings"),
    Entry("transformers", "PreTrainedModel.get_decoder"),
    Entry("transformers", "PreTrainedModel._is_stateful"),
    Entry("transformers", "PreTrainedModel._supports_attention_backend"),
    Entry("transformers.models.qwen3_next.modeling_qwen3_next", "Qwen3NextGatedDeltaNet.conv1d", on_instances=True),
    Entry(
        "transformers.models.granitemoehybrid.modeling_granitemoehybrid",
        "GraniteMoeHybridMambaLayer.conv1d",
        on_instances=True,
    ),
    Entry(
        "transformers.models.qwen3_next.modeling_qwen3_next",
        "torch_chunk_gated_delta_rule",
        ("query", "key", "value", "g", "beta", "initial_state", "output_final_state"),
    ),
    Entry("transformers", "PreTrainedModel.generation_config", on_instances=True),
    Entry("transformers", "PretrainedConfig._attn_implementation"),
    Entry("transformers", "AttentionInterface.register", ("key", "value")),
    Entry("transformers.masking_utils", "AttentionMaskInterface.register", ("key", "value")),
    Entry("transformers.masking_utils", "ALL_MASK_ATTENTION_FUNCTIONS"),
    Entry("transformers.modeling_utils", "ALL_ATTENTION_FUNCTIONS.get"),
    Entry("transformers.models.llama.modeling_llama", "eager_attention_forward", ("module", "query", "key", "value")),
    Entry("transformers.modeling_layers", "GradientCheckpointingLayer._gradient_checkpointing_func", on_instances=True),
    Entry("transformers.models.llama.modeling_llama", "LlamaDecoderLayer.mlp", on_instances=True),
    Entry("transformers.modeling_outputs", "MoeModelOutputWithPast", ("router_logits",)),
    Entry("transformers.modeling_outputs", "MoeCausalLMOutputWithPast", ("aux_loss",)),
    Entry("transformers.models.mixtral.modeling_mixtral", "MixtralForCausalLM.forward", ("output_router_logits",)),
    Entry("transformers", "Trainer.training_step", ("model", "inputs", "num_items_in_batch")),
    Entry("transformers", "Trainer.current_gradient_accumulation_steps", on_instances=True),
    Entry("transformers", "Trainer.model_accepts_loss_kwargs", on_instances=True),
    Entry("transformers", "Trainer.get_batch_samples", ("epoch_iterator", "num_batches", "device")),
    Entry("transformers", "Trainer._prepare_inputs", ("inputs",)),
    Entry("transformers", "Trainer.compute_loss_context_manager"),
    Entry("transformers", "Trainer._save", ("output_dir",)),
    Entry("transformers", "Trainer._push_from_checkpoint", ("checkpoint_folder",)),
    Entry("transformers", "Trainer.evaluation_loop", ("dataloader", "description", "metric_key_prefix")),
    Entry("transformers", "Trainer.log", ("logs",)),
    *(
        Entry("accelerate.state", f"GradientState.{name}")
        for name in ("end_of_dataloader", "remainder", "active_dataloader")
    ),
    Entry("accelerate.data_loader", "BatchSamplerShard.process_index", on_instances=True),
    Entry("accelerate.state", "GradientState._set_sync_gradients", ("sync_gradients",)),
    Entry("accelerate", "Accelerator.no_sync", ("model",)),
    Entry("accelerate", "Accelerator.parallelism_config"),
    Entry("datasets", "Dataset._fingerprint", on_instances=True),
    Entry("peft.tuners.lora", "Linear.forward", ("x",)),
    *(
        Entry("peft.tuners.lora", f"Linear.{name}", on_instances=True)
        for name in ("lora_A", "lora_B", "lora_dropout", "lora_variant", "scaling", "base_layer")
    ),
    *(Entry("peft.tuners.lora", f"Linear.{name}") for name in ("active_adapters", "disable_adapters", "merged")),
    *(Entry("peft.tuners.lora.model", name) for name in ("is_bnb_available", "is_bnb_4bit_available")),
    *(Entry("huggingface_hub.constants", name) for name in ("HF_HUB_OFFLINE", "ENDPOINT", "HF_HUB_ETAG_TIMEOUT")),
    Entry("torch.serialization", "register_package", ("priority", "tagger", "deserializer")),
    Entry("torch.utils.checkpoint", "checkpoint", ("function", "use_reentrant", "context_fn")),
    *(
        Entry("torch", f"ops.aten._scaled_dot_product_flash_attention_for_cpu{direction}")
        for direction in ("", "_backward")
    ),
    Entry("torch", "_fused_sdp_choice"),
    *(
        Entry("torch.nn", f"Module.{name}", on_instances=True)
        for name in ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    ),
    Entry("torch._dynamo.eval_frame", "OptimizedModule._orig_mod", on_instances=True),
    Entry(
        "torch.distributed.algorithms._checkpoint.checkpoint_wrapper",
        "ActivationWrapper._checkpoint_wrapped_module",
        on_instances=True,
    ),
    Entry("torch._subclasses.fake_tensor", "FakeTensorMode", ("allow_non_fake_inputs",)),
    Entry("torch", "ops.aten._grouped_mm", versions=">=2.8"),
    Entry("torch.utils._python_dispatch", "TorchDispatchMode.__torch_dispatch__"),
    Entry("torch.utils._pytree", "tree_leaves"),
    Entry("torch.utils.weak", "WeakIdKeyDictionary"),
)
"""Names of transformers, accelerate, datasets, peft, huggingface_hub and torch that are relied on with every host."""
