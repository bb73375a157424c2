"""Loading of frozen scoring models by LLaMA-Factory. Imported for its side effect: it registers the function
and the access to the hub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llamafactory.hparams import FinetuningArguments, ModelArguments
from llamafactory.model import load_model, load_tokenizer

import sepo.hosts.llamafactory.hub  # noqa: F401
from sepo.recipe.model_specs import MAIN, ModelSpec
from sepo.scoring.models import load_frozen


@load_frozen.register(ModelArguments)
def load_with_host(model_args: ModelArguments, spec: ModelSpec, adapters: Sequence[str]) -> Any:
    """Load a scoring model as ``load_frozen`` specifies, without the settings that only concern the policy."""
    scoring_args = ModelArguments.copyfrom(
        model_args,
        model_name_or_path=spec.model,
        model_revision=MAIN,  # of local directories: unused
        adapter_name_or_path=",".join(adapters) or None,
        adapter_folder=None,
        quantization_bit=spec.quantization_bit,
        resize_vocab=False,
        add_tokens=None,
        add_special_tokens=None,
        use_unsloth=False,
        mixture_of_depths=None,
        shift_attn=False,
    )
    tokenizer = load_tokenizer(scoring_args)["tokenizer"]
    return load_model(tokenizer, scoring_args, FinetuningArguments(), is_trainable=False)
