"""The step `pairs` of `sepo pipeline`: its recipe, and the data sets that the steps after it read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from sepo.errors import SepoError
from sepo.files import write_whole
from sepo.recipe.keys import PAIRS_KEYS, SAMPLING_KEYS, names_of

PAIRS = "pairs"
"""Step, directory and data set of the sampled pairs."""
_INFO = "dataset_info.json"
_NOT_SAMPLED = (
    "eval_dataset", "val_size", "eval_on_each_dataset", "tokenized_path", "packing", "neat_packing", "train_on_prompt",
    "mask_history", "ignore_pad_token_for_loss", "train_from_scratch", "use_unsloth", "use_unsloth_gc",
    "enable_liger_kernel", "moe_aux_loss_coef", "disable_gradient_checkpointing", "use_reentrant_gc",
    "upcast_layernorm", "upcast_lmhead_output", "print_param_status", "cutoff_len", "overwrite_cache",
    "preprocessing_batch_size", "preprocessing_num_workers", "data_shared_file_system",
)  # fmt: skip
"""Keys of the host's models and data that change training or evaluation only: another value samples nothing anew."""
_SAMPLED = (
    "finetuning_type",
    "seed",
    "bf16",
    "fp16",
    "pure_bf16",
    "use_cpu",
    "score_batch_tokens",
    "head_chunk_tokens",
)
"""Other keys of a recipe that sampling or judging reads."""
REFERENCE = (
    "ref_model", "ref_model_revision", "ref_model_adapters", "ref_model_adapters_revision",
    "ref_model_quantization_bit",
)  # fmt: skip
"""Keys of the reference, those of ``_START`` for it: model, its revision, adapters, theirs, quantization."""
_START = ("model_name_or_path", "model_revision", "adapter_name_or_path", "quantization_bit")
_OF_ONE_RUN = ("tokenized_path", "resume_from_checkpoint")
"""Keys with which several rounds would read the rows or the state of one."""


def check_sampling(shared: Mapping[str, Any], sections: Mapping[str, Mapping[str, Any] | None], *, rounds: int) -> None:
    """Raise if keys contradict the section ``pairs``.

    Args:
        shared: keys on top.
        sections: sections by name, None if absent.
        rounds: number of rounds.

    Raises:
        SepoError: naming the key.
    """
    pairs = sections[PAIRS]
    if pairs is None:
        own = [name for name in shared if name in PAIRS_KEYS]
        if own:
            raise SepoError(
                f"{own[0]} is set, but there is no section pairs, so nothing is sampled; add it (pairs: {{}}), "
                "or remove it."
            )
        return
    for place in (shared, pairs):
        if place.get("pairs_dir"):
            raise SepoError(
                "pairs_dir is set, but a pipeline writes its pairs to OUTPUT_DIR/pairs; remove it, or run sepo pairs "
                "alone."
            )
    if (sections["policy"] or {}).get("dataset"):
        raise SepoError(
            "dataset is set for the policy, but with the section pairs it is trained on the sampled pairs; set the "
            "data set of the prompts on top or in pairs."
        )
    named = {"the top": shared, **{f"section '{name}'": given or {} for name, given in sections.items()}}
    for where, given in named.items():
        for name in _OF_ONE_RUN[: None if rounds > 1 else 1]:
            if given.get(name):
                raise SepoError(
                    f"{name} is set in {where}, but the pairs are sampled by the pipeline, so it would be that of "
                    "other pairs; remove it."
                )
    for name in _START[:3] if rounds > 1 else ():
        if pairs.get(name):
            raise SepoError(
                f"{name} is set in section 'pairs', but with rounds {rounds} each round samples from the policy of the "
                "round before; remove one of them."
            )


def pairs_recipe(
    shared: Mapping[str, Any],
    policy: Mapping[str, Any],
    section: Mapping[str, Any],
    *,
    reference: Mapping[str, Any],
    output: str,
    number: int,
) -> dict[str, Any]:
    """Return the recipe of sampling and judging from the model that the policy of a round starts from.

    Args:
        shared: keys on top.
        policy: the recipe of the policy, with the data sets of the prompts.
        section: the section ``pairs``.
        reference: keys that name the reference of the policy, which ``judge: policy`` compares it with.
        output: directory of the round.
        number: number of the round, from 1; each has a seed of its own.
    """
    read = {name: value for name, value in policy.items() if name in sampled_keys()}
    own = {name: value for name, value in shared.items() if name in SAMPLING_KEYS}
    pairs = {**read, **own, **section}
    if pairs.get("judge") == "policy" and not pairs.get("ref_model"):
        pairs |= reference
    if number > 1:
        seed = pairs.get("pairs_seed", pairs.get("seed", 42))
        pairs["pairs_seed"] = int(seed) + number - 1
    return {**pairs, "pairs_dir": f"{output}/{PAIRS}"}


def reference_before(before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that name the model which a run started from as the reference of another run."""
    of_start = zip(REFERENCE, (*_START[:2], _START[2], _START[1], _START[3]), strict=True)
    return {name: before[key] for name, key in of_start if before.get(key) is not None}


def sampled_keys() -> frozenset[str]:
    """Return the keys of a training recipe that change what is sampled, or how it is loaded."""
    from llamafactory.hparams import DataArguments, ModelArguments

    host = {item.name for kind in (ModelArguments, DataArguments) for item in fields(kind) if item.init}
    return frozenset({*host, *_SAMPLED} - {*_NOT_SAMPLED})


def with_pairs(policy: Mapping[str, Any], *, output: str) -> dict[str, Any]:
    """Return a policy's recipe with the sampled pairs in place of its data set; evaluation data sets stay.

    Args:
        policy: the recipe, with the data sets of the prompts.
        output: directory of the round.
    """
    changed = {name: value for name, value in policy.items() if name not in ("mix_strategy", "interleave_probs")}
    folder = f"{output}/{PAIRS}"
    if policy.get("eval_dataset"):
        # The host reads training and evaluation data sets from one directory.
        folder = f"{output}/data"
        changed.setdefault("media_dir", policy.get("dataset_dir") or "data")
    return {**changed, "dataset": PAIRS, "dataset_dir": folder}


def evaluation_entries(policy: Mapping[str, Any], *, folder: str) -> dict[str, Any]:
    """Return the declarations of a policy's evaluation data sets, readable from any directory.

    Args:
        policy: the recipe, with its ``eval_dataset``.
        folder: the ``dataset_dir`` that declares them.

    Raises:
        SepoError: they are not declared in a local directory, or one has the name of the sampled pairs.
    """
    names = names_of(policy.get("eval_dataset"))
    file = Path(folder) / _INFO
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        entries = {name: dict(known[name]) for name in names}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SepoError(
            f"eval_dataset is {', '.join(names)}, expected data sets of {file} ({type(error).__name__}: {error})."
        ) from error
    if PAIRS in entries:
        raise SepoError(
            f"eval_dataset names '{PAIRS}', which is the data set of the sampled pairs; rename it in {file}."
        )
    for entry in entries.values():
        for key in ("file_name", "script_url"):
            if key in entry:
                entry[key] = str((Path(folder) / str(entry[key])).resolve())
    return entries


def declare_data(recipe: Mapping[str, Any], *, pairs: str, folder: str | None) -> None:
    """Declare the sampled pairs and the evaluation data sets in the ``dataset_dir`` of a step. Idempotent.

    Args:
        recipe: the recipe of the step.
        pairs: directory of the sampled pairs.
        folder: the ``dataset_dir`` of the evaluation data sets; None if there are none, and the step reads the
            directory of the pairs.

    Raises:
        SepoError: see ``evaluation_entries``; or there are no pairs.
    """
    source = Path(pairs)
    try:
        entry = json.loads((source / _INFO).read_text(encoding="utf-8"))[PAIRS]
        file = source / str(entry["file_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SepoError(
            f"{source / _INFO} does not declare the data set '{PAIRS}' of the step 'pairs' ({type(error).__name__}); "
            "remove the record of this step, pipeline/pairs.done.json, to sample it again."
        ) from error
    if not file.is_file():
        raise SepoError(
            f"{file} of the step 'pairs' does not exist; restore it, or remove {source} and the record of this step, "
            "pipeline/pairs.done.json, to sample it again."
        )
    if folder is None:
        return
    target = Path(str(recipe["dataset_dir"]))
    entry = {**entry, "file_name": os.path.relpath(file, target)}
    entries = {PAIRS: entry, **evaluation_entries(recipe, folder=folder)}
    target.mkdir(parents=True, exist_ok=True)
    write_whole(target / _INFO, json.dumps(entries, ensure_ascii=False, indent=1) + "\n")
