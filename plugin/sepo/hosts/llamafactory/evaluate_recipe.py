"""The part of a recipe that defines an evaluation: policy, start, reference, rows, and the host's keys."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from sepo.errors import SepoError
from sepo.hosts.llamafactory.bench.recipe import check_keys
from sepo.hosts.llamafactory.chain_steps import SECTIONS
from sepo.hosts.llamafactory.pipeline import read_pipeline
from sepo.hosts.llamafactory.reading import override_values
from sepo.hosts.llamafactory.recipe import host_keys
from sepo.recipe.comparison import refuse_comparison
from sepo.recipe.keys import as_flag, as_number
from sepo.recipe.model_specs import ModelSpec
from sepo.recipe.reference import base_of_reference_adapters, reference_spec
from sepo.recipe.stage_names import check_stage
from sepo.redaction import HIDDEN
from sepo.runs.folder import read_object
from sepo.runs.log_reader import SETTINGS_FILE
from sepo.runs.provenance import RECIPE_FILE

_REFERENCE_KEYS = ("ref_model", "ref_model_adapters", "ref_model_quantization_bit")
_TRAINING_KEYS_KEPT = ("use_cpu", "bf16", "fp16", "pure_bf16", "seed")
_CARRIER = {"stage": "minor_dpo", "do_train": False, "report_to": "none"}
"""The stage under which the host tokenizes pairs: one of sepo's, so that a data set without pairs is refused early. No
loss of a stage is computed here."""

_NOT_READ = ("adapter_name_or_path", "tokenized_path", "eval_on_each_dataset", "eval_num_beams", "print_param_status")
_NEW_TOKENS = ("resize_vocab", "add_tokens", "add_special_tokens")


@dataclass(frozen=True)
class Use:
    """What a command does with the recipe of an evaluation.

    Args:
        command: the command, for messages.
        decodes: how it generates, for messages.
        options: the host's generation keys that it supports.
        compares: whether it compares the policy with a reference, on rows that training should not have seen.
        reads_pairs: whether it reads the recipe's pairs, tokenized.
    """

    command: str
    decodes: str
    options: tuple[str, ...]
    compares: bool
    reads_pairs: bool = True


EVALUATION = Use(
    "sepo eval", "decodes greedily or samples from the whole distribution", ("max_new_tokens", "temperature"), True
)
SAMPLING = Use(
    "sepo sample", "samples with a temperature and top_p alone", ("max_new_tokens", "temperature", "top_p"), False
)
PAIRS = Use(
    "sepo pairs",
    "samples with keys of its own",
    ("pairs_max_new_tokens", "pairs_temperature", "pairs_top_p"),
    compares=False,
    reads_pairs=False,
)


@dataclass(frozen=True)
class EvaluationRecipe:
    """An evaluation as a recipe defines it.

    Args:
        host: the keys for ``recipe.get_train_args``, without ``output_dir``.
        policy: the evaluated model.
        start: the policy before training, or None if the recipe does not define it.
        reference: the reference model of the KL, or None.
        reference_key: the recipe key that names the reference.
        part: ``eval`` or ``train``: the host's name of the rows.
        dataset: the data set of the rows, as the recipe names it.
        decoding: ``max_new_tokens``, ``temperature`` and ``top_p``, if the recipe has them.
        notes: lines to print before the evaluation starts.
    """

    host: dict[str, Any]
    policy: ModelSpec
    start: ModelSpec | None
    reference: ModelSpec | None
    reference_key: str
    part: str
    dataset: str
    decoding: Mapping[str, Any]
    notes: tuple[str, ...]


def evaluation_recipe(file: Path, overrides: Sequence[str] = (), *, use: Use = EVALUATION) -> EvaluationRecipe:
    """Read a recipe for training or for evaluation.

    Args:
        file: path of the recipe, or the output directory of a run that stored its recipe; the model of that run is
            then evaluated.
        overrides: ``key=value`` words; ``adapter_name_or_path`` names the adapter that the recipe trained.
        use: what the command does with it.

    Raises:
        SepoError: the recipe is invalid, names no rows, or has settings that the command does not support.
    """
    written, recipe = _of_run(file, overrides, use) if file.is_dir() else _of_file(file, overrides)
    return resolved_evaluation(written, recipe, file=file, use=use)


def resolved_evaluation(
    written: Mapping[str, Any], recipe: Mapping[str, Any], *, file: Path, use: Use = EVALUATION
) -> EvaluationRecipe:
    """Return an evaluation from keys and values.

    Args:
        written: the recipe without the overrides that name the evaluated model.
        recipe: the recipe with them.
        file: where it was read, for messages.
        use: what the command does with it.

    Raises:
        SepoError: the recipe is invalid, names no rows, or has settings that the command does not support.
    """
    written, recipe = _given(written), _given(recipe)
    refuse_comparison(recipe)
    sections = [name for name in SECTIONS if isinstance(recipe.get(name), dict)]
    if sections:
        raise SepoError(
            f"{file} is a pipeline recipe (section '{sections[0]}'); evaluate the recipe of its last step, "
            "OUTPUT_DIR/pipeline/policy.yaml, with adapter_name_or_path=OUTPUT_DIR/policy."
        )
    check_stage(None if recipe.get("stage") is None else str(recipe["stage"]))
    check_keys(recipe, host_keys=host_keys())
    _check_decoding(recipe, use)
    if not recipe.get("model_name_or_path"):
        raise SepoError(f"{file}: model_name_or_path is missing; set it to the model to evaluate.")
    policy = _own_model(recipe)
    _check_policy(recipe, written, policy, use)
    start, reference_key = _start(recipe, written, policy), "adapter_name_or_path"
    reference = start
    keys = {**recipe, **base_of_reference_adapters(recipe)}
    if keys.get("ref_model"):
        reference_key, reference = reference_spec(keys)
        start = start or reference
    if use.compares and reference == policy:
        raise SepoError(
            f"the reference is the evaluated model itself ({policy.model}), so every KL would be 0; set ref_model to "
            "the model that training started from."
        )
    part, rows, dataset = _rows(recipe, file) if use.reads_pairs else ("train", {}, _name(recipe.get("dataset", "")))
    commits = _commits(file) if file.is_dir() else {}
    policy = policy.at_commits(commits)
    start, reference = (None if spec is None else spec.at_commits(commits) for spec in (start, reference))
    revision = {} if policy.revision is None else {"model_revision": policy.revision}
    return EvaluationRecipe(
        host={**_host_keys(recipe), **rows, **revision, **_CARRIER},
        policy=policy,
        start=start,
        reference=reference,
        reference_key=reference_key if reference is not None else "",
        part=part,
        dataset=dataset,
        decoding={name: as_number(name, recipe[name], kind) for name, kind in _options(recipe, use)},
        notes=tuple(_notes(recipe, policy, part, use)),
    )


def _of_file(file: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a recipe without and with its overrides."""
    return read_pipeline(file), read_pipeline(file, overrides)


def _of_run(folder: Path, overrides: Sequence[str], use: Use) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the recipe that a run stored, without and with the model that it trained and the overrides."""
    adapter = (folder / "adapter_config.json").is_file()
    kept = folder / RECIPE_FILE
    if not kept.is_file():
        key = "adapter_name_or_path" if adapter else "model_name_or_path"
        raise SepoError(
            f"{folder} is a directory without a stored recipe ({RECIPE_FILE}). Name the recipe that it was trained "
            f"with: {use.command} recipe.yaml {key}={folder}"
        )
    try:
        recorded = json.loads(kept.read_text(encoding="utf-8"))["recipe"]
        written = {str(name): value for name, value in recorded.items() if value != HIDDEN}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SepoError(f"{kept} cannot be read as the recipe of a run: {error!r}; name the recipe file.") from error
    return written, {**written, **trained_model(written, folder), **override_values(overrides)}


def trained_model(recipe: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the keys that name the model that a run trained.

    Args:
        recipe: keys and values of the run.
        folder: its output directory.
    """
    if not (folder / "adapter_config.json").is_file():
        return {"model_name_or_path": str(folder), "adapter_name_or_path": None}
    new = as_flag("create_new_adapter", recipe.get("create_new_adapter") or False)
    below = _own_model(_given(recipe)).adapters if new else ()
    return {"adapter_name_or_path": ",".join((*below, str(folder)))}


def _commits(folder: Path) -> dict[str, dict[str, str]]:
    """Return the commits of the hub names that a run used; empty if it used none or did not record them."""
    found = read_object(folder / SETTINGS_FILE, [], consequence="branches are looked up anew").get("commits")
    return found if isinstance(found, dict) else {}


def _given(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in recipe.items() if value is not None}


def _own_model(recipe: Mapping[str, Any]) -> ModelSpec:
    return reference_spec({name: value for name, value in recipe.items() if name not in _REFERENCE_KEYS})[1]


def _trains(recipe: Mapping[str, Any]) -> bool:
    return as_flag("do_train", recipe.get("do_train", False))


def _check_decoding(recipe: Mapping[str, Any], use: Use) -> None:
    from llamafactory.hparams import GeneratingArguments

    for item in fields(GeneratingArguments):
        if item.name in recipe and item.name not in (*use.options, "skip_special_tokens"):
            raise SepoError(
                f"{item.name} is set, but {use.command} {use.decodes}; remove {item.name} (only "
                f"{', '.join(use.options)} are supported)."
            )


def _check_policy(recipe: Mapping[str, Any], written: Mapping[str, Any], policy: ModelSpec, use: Use) -> None:
    if policy.quantization_bit is not None and len(policy.adapters) > 1:
        raise SepoError(
            f"adapter_name_or_path names {len(policy.adapters)} adapters and quantization_bit is "
            f"{policy.quantization_bit}, but adapters cannot be merged into quantized weights; remove "
            "quantization_bit, or merge all adapters but the last (llamafactory-cli export)."
        )
    if recipe.get("mixture_of_depths"):
        raise SepoError(f"mixture_of_depths is set, but {use.command} does not support such models; remove it.")
    changed = [name for name in _NEW_TOKENS if recipe.get(name)] if policy.adapters else []
    if changed:
        raise SepoError(
            f"{changed[0]} is set, so the adapter has tokens that its base model lacks; merge it (llamafactory-cli "
            f"export) and evaluate the merged model without {changed[0]}."
        )
    below = _own_model(written).adapters if _trains(written) else ()
    if as_flag("create_new_adapter", recipe.get("create_new_adapter", False)) and below:
        named = ",".join(policy.adapters)
        if policy.adapters[: len(below)] != below:
            raise SepoError(
                f"adapter_name_or_path is {named or 'empty'}, but the recipe trains a new adapter on top of "
                f"{','.join(below)}; set adapter_name_or_path={','.join((*below, *policy.adapters))}."
            )


def _start(recipe: Mapping[str, Any], written: Mapping[str, Any], policy: ModelSpec) -> ModelSpec | None:
    """Return the policy before training, or None if it is unknown.

    It is the model that a training recipe starts from if the overrides name the evaluated one, else the evaluated model
    without its last adapter.
    """
    trained_from = _own_model(written)
    if _trains(written) and trained_from != policy:
        continues = trained_from.adapters and not as_flag("create_new_adapter", recipe.get("create_new_adapter", False))
        if trained_from.model != policy.model:
            return trained_from
        if continues:
            started = trained_from.adapter_revisions
            return replace(policy, adapters=trained_from.adapters, adapter_revisions=started)
    if not policy.adapters:
        return None
    return policy.with_adapters(len(policy.adapters) - 1)


def _rows(recipe: Mapping[str, Any], file: Path) -> tuple[str, dict[str, Any], str]:
    """Return the host's role of the evaluated rows, the keys with which it loads only these, and their name."""
    if recipe.get("eval_dataset"):
        return "eval", {"eval_dataset": recipe["eval_dataset"]}, _name(recipe["eval_dataset"])
    if not recipe.get("dataset"):
        raise SepoError(
            f"{file}: eval_dataset is missing; name a ranking data set of {recipe.get('dataset_dir', 'data')}."
        )
    rows = {"dataset": recipe["dataset"]}
    if as_number("val_size", recipe.get("val_size", 0), float):
        return "eval", {**rows, "val_size": recipe["val_size"]}, _name(recipe["dataset"])
    return "train", rows, _name(recipe["dataset"])


def _name(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _host_keys(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe's keys about models and data, and the training keys for device, precision and seed."""
    from llamafactory.hparams import DataArguments, ModelArguments

    known = {item.name for group in (ModelArguments, DataArguments) for item in fields(group) if item.init}
    dropped = {*_NOT_READ, "dataset", "eval_dataset", "val_size"}
    return {name: value for name, value in recipe.items() if name in (known - dropped) | {*_TRAINING_KEYS_KEPT}}


def _options(recipe: Mapping[str, Any], use: Use) -> list[tuple[str, type[int] | type[float]]]:
    kinds: dict[str, type[int] | type[float]] = {"max_new_tokens": int, "temperature": float, "top_p": float}
    return [(name, kinds[name]) for name in use.options if name in recipe]


def _notes(recipe: Mapping[str, Any], policy: ModelSpec, part: str, use: Use) -> list[str]:
    notes = []
    output = recipe.get("output_dir")
    trained = Path(str(output)).expanduser() if output and _trains(recipe) else None
    evaluated = {Path(adapter).expanduser().resolve() for adapter in policy.adapters}
    if trained and (trained / "adapter_config.json").is_file() and trained.resolve() not in evaluated:
        done = "evaluated" if use.compares else "sampled"
        notes.append(
            f"{done}: {policy.model}, as the recipe starts; for the trained adapter: adapter_name_or_path={output}"
        )
    if part == "train" and use.compares:
        notes.append("evaluated: all rows of dataset; if the policy was trained on them, set eval_dataset")
    return notes
