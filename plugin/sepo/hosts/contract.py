"""Contract of a host: the non-public names, with their parameters, that an adapter relies on.

``PATCHES.md`` documents for each name why and how it is used, and which test detects a change of its behaviour; its
first column holds the names of ``Entry``. Each host has its own contract next to its adapter; this module has the
shared types, the check and the names that all hosts rely on.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One line of `sepo doctor`.

    Args:
        good: whether the check passed.
        text: what was found, and what to do if the check failed.
    """

    good: bool
    text: str


@dataclass(frozen=True)
class Entry:
    """A name that is rebound, subclassed, called or read.

    Args:
        module: the module that defines it.
        path: the attribute in the module, dotted for an attribute of a class.
        parameters: parameters that the function or class must accept, in any order.
        on_instances: whether only instances have the attribute; it is then looked up in the source of the class.
    """

    module: str
    path: str
    parameters: tuple[str, ...] = ()
    on_instances: bool = False

    def __str__(self) -> str:
        return f"{self.module}.{self.path}"


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
    absent = [parameter for parameter in entry.parameters if parameter not in has]
    return f"{entry} does not take {', '.join(absent)}" if absent else None


def _is_assigned(kind: type, name: str) -> bool:
    sources = (inspect.getsource(base) for base in kind.__mro__ if base.__module__ != "builtins")
    return any(f"self.{name}" in source for source in sources)


def check(entries: Sequence[Entry], *, expected: str) -> list[Finding]:
    """Look up the names of a contract.

    Args:
        entries: the contract.
        expected: the host and the supported versions, for the message.

    Returns:
        One failed finding per name that is missing or has other parameters, or a single passed finding.
    """
    absent = [found for found in map(gap, entries) if found is not None]
    if absent:
        return [Finding(False, f"{found}; use {expected}") for found in absent]
    return [Finding(True, f"all {len(entries)} names of the host's contract exist")]


SHARED = (
    Entry("transformers.integrations.deepspeed", "_hf_deepspeed_config_weak_ref"),
    Entry("transformers.integrations.deepspeed", "unset_hf_deepspeed_config"),
    Entry("transformers.modeling_utils", "is_fsdp_enabled"),
    Entry("transformers", "PreTrainedModel.get_output_embeddings"),
    Entry("transformers", "PreTrainedModel.get_decoder"),
    Entry("transformers", "PreTrainedModel._is_stateful"),
    Entry("transformers", "PreTrainedModel._supports_attention_backend"),
    Entry("transformers", "PreTrainedModel.generation_config", on_instances=True),
    Entry("transformers", "PretrainedConfig._attn_implementation"),
    Entry("transformers", "AttentionInterface.register", ("key", "value")),
    Entry("transformers.masking_utils", "AttentionMaskInterface.register", ("key", "value")),
    Entry("transformers.masking_utils", "ALL_MASK_ATTENTION_FUNCTIONS"),
    Entry("transformers.modeling_utils", "ALL_ATTENTION_FUNCTIONS.get_interface"),
    Entry("transformers.models.llama.modeling_llama", "eager_attention_forward", ("module", "query", "key", "value")),
    Entry("transformers.modeling_layers", "GradientCheckpointingLayer._gradient_checkpointing_func", on_instances=True),
    Entry("transformers.models.llama.modeling_llama", "LlamaDecoderLayer.mlp", on_instances=True),
    Entry("transformers", "Trainer.training_step", ("model", "inputs", "num_items_in_batch")),
    Entry("transformers", "Trainer.current_gradient_accumulation_steps", on_instances=True),
    Entry("transformers", "Trainer.model_accepts_loss_kwargs", on_instances=True),
    Entry("transformers", "Trainer.get_batch_samples", ("epoch_iterator", "num_batches", "device")),
    Entry("transformers", "Trainer._prepare_inputs", ("inputs",)),
    Entry("transformers", "Trainer.compute_loss_context_manager"),
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
    *(Entry("huggingface_hub.constants", name) for name in ("HF_HUB_OFFLINE", "ENDPOINT", "HF_HUB_ETAG_TIMEOUT")),
    Entry("torch.serialization", "register_package", ("priority", "tagger", "deserializer")),
    Entry("torch.utils.checkpoint", "checkpoint", ("function", "use_reentrant")),
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
    Entry("torch.utils._python_dispatch", "TorchDispatchMode.__torch_dispatch__"),
    Entry("torch.utils._pytree", "tree_leaves"),
    Entry("torch.utils.weak", "WeakIdKeyDictionary"),
)
"""Names of transformers, accelerate, datasets, peft, huggingface_hub and torch that are relied on with every host."""
