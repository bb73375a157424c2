"""`sepo pipeline`: SePO's chain (base, oracle, scores, policy) from one recipe, with one run per step."""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sepo.errors import SepoError
from sepo.hosts.llamafactory.child_runs import changes, command_line, is_resumable, read_record, train, write_record
from sepo.hosts.llamafactory.reading import Recipe, override_values, reading_error, recipe_of
from sepo.recipe.comparison import refuse_comparison
from sepo.recipe.keys import ORACLE_KIND, PIPELINE_KEYS, SEPO_KEYS, names_of, unknown_key
from sepo.recipe.resolve import REFUSED, resolve
from sepo.recipe.stage_names import is_sepo_stage
from sepo.recipe.stages import registered_keys, with_stage_defaults
from sepo.redaction import HIDDEN, redacted, remember_secrets
from sepo.training.row_losses import RowLosses

SECTIONS = ("base", "oracle", "policy")
RECORDS = "pipeline"
"""Name of the directory of the steps' records."""
REVERSED = "oracle_reversed"
"""Step, and directory, of the model trained on exchanged pairs, which the oracle is compared with."""
_OWN_DPO = {"stage": "sepo", "objective": "dpo"}
"""DPO in sepo's step: the stage of the oracle."""
_MEMORY = ("batch_tokens", "head_chunk_tokens")
"""Shared keys of sepo that the oracle's step has, too."""
# Shared evaluation keys apply to the policy only: base and oracle train on a sample without evaluation rows.
_EVALUATION = (
    "eval_dataset", "val_size", "do_eval", "eval_strategy", "eval_steps", "eval_on_start", "eval_delay",
    "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "early_stopping_steps",
)  # fmt: skip
# Keys with which the model on exchanged pairs would read other pairs, or the oracle's outputs, or overwrite these.
_OF_ONE_ORACLE = ("dataset", "dataset_dir", "eval_dataset", "hub_model_id")
_OF_ONE_STEP = ("tokenized_path", "resume_from_checkpoint")
_COMPARED_WITH = ("oracle_base_model", "oracle_base_model_adapters")


@dataclass(frozen=True)
class Step:
    """One run of the chain.

    Args:
        name: ``sample``, ``base``, ``oracle``, ``oracle_reversed`` or ``policy``.
        recipe: keys and values of the run; a finished step with an unchanged recipe is not run again.
    """

    name: str
    recipe: dict[str, Any]


def read_pipeline(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a pipeline recipe.

    Args:
        path: YAML with shared keys on top and the sections ``base``, ``oracle`` and ``policy``.
        overrides: ``key=value`` or ``section.key=value`` words.

    Returns:
        The recipe as plain values, with their origins.

    Raises:
        SepoError: there is no such file, it is not a YAML mapping, or an override has another form.
    """
    if not path.is_file():
        raise SepoError(f"recipe '{path}' does not exist (from {os.getcwd()}).")
    changes = override_values(overrides)
    try:
        merged = OmegaConf.merge(OmegaConf.load(path), OmegaConf.create(changes))
        recipe = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, OSError) as error:
        raise SepoError(f"recipe '{path}' cannot be read: {reading_error(error)}") from error
    if not isinstance(recipe, dict):
        raise SepoError(f"recipe '{path}' is a list; a mapping of keys and values is expected.")
    # In the recorded recipe of a step; without the key, the token is used that this machine is logged in with.
    kept = {str(name): value for name, value in recipe.items() if value != HIDDEN}
    remember_secrets(kept)
    return recipe_of(kept, file=str(path), overrides=overrides)


def plan_steps(recipe: Mapping[str, Any]) -> list[Step]:
    """Derive the recipes of the steps from a pipeline recipe; each reads the outputs of the steps before it.

    Args:
        recipe: keys and values, from ``read_pipeline``.

    Returns:
        The steps in their order; ``base`` is absent if the recipe has ``base: false``, and ``oracle_reversed`` is only
        there with ``oracle: {kind: reversed}``.

    Raises:
        SepoError: ``output_dir`` is missing, or a section or value has another form than expected.
    """
    shared = {name: value for name, value in recipe.items() if name not in (*SECTIONS, *PIPELINE_KEYS)}
    sections = {name: _section(recipe, name) for name in SECTIONS}
    if not shared.get("output_dir"):
        raise SepoError("output_dir is missing; set it to the directory in which each step writes its subdirectory.")
    key = PIPELINE_KEYS["oracle_sample_ratio"]
    ratio = key.read(recipe.get(key.name, key.default))
    output = str(shared.pop("output_dir"))
    policy = {**shared, "stage": "sepo", "do_train": True, **(sections["policy"] or {})}
    policy["output_dir"] = f"{output}/policy"
    sepo_keys = (*SEPO_KEYS, *registered_keys(with_stage_defaults(policy)))
    training = {name: value for name, value in shared.items() if name not in (*sepo_keys, *_EVALUATION)}
    base = _base_recipe(recipe, training, sections["base"], output)
    section = sections["oracle"] or {}
    kind = ORACLE_KIND.read(section.pop("kind", None) or ORACLE_KIND.default)
    oracle = _oracle_recipe(base, training, section, output)
    if is_sepo_stage(oracle["stage"]):
        oracle = {**{name: shared[name] for name in _MEMORY if name in shared}, **oracle}
    oracles = [Step("oracle", oracle)]
    if kind == "reversed":
        _check_reversed(oracle, section, policy)
        oracles.append(Step(REVERSED, _reversed_recipe(oracle, output)))
    derived = _oracle_keys(oracle, None if kind == "dpo" else oracles[-1].recipe)
    if "oracle_base_model" in policy:
        derived.pop("oracle_base_model_revision", None)
    policy = {**derived, **policy}
    steps = [Step("sample", {**_data_keys(policy), key.name: ratio, "output_dir": f"{output}/sample"})]
    if base is not None:
        steps.append(Step("base", base))
    return [*steps, *oracles, Step("policy", policy)]


def _section(recipe: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    section = recipe.get(name, {})
    if name == "base" and section is False:
        return None
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise SepoError(f"section '{name}' is {redacted({name: section})[name]!r}; keys and values are expected.")
    return {str(key): value for key, value in section.items()}


def _base_recipe(
    recipe: Mapping[str, Any], training: Mapping[str, Any], section: dict[str, Any] | None, output: str
) -> dict[str, Any] | None:
    """Return the recipe of SFT on the sample's chosen responses (SePO, Eq. 23) or on ``base_dataset``."""
    if section is None:
        return None
    from sepo.hosts.llamafactory.sample import ANSWERS

    data = {"dataset": ANSWERS, "dataset_dir": f"{output}/sample"}
    if recipe.get("base_dataset"):
        folder = recipe.get("base_dataset_dir") or recipe.get("dataset_dir") or "data"
        data = {"dataset": recipe["base_dataset"], "dataset_dir": folder}
    return {**training, **data, "stage": "sft", "do_train": True, **section, "output_dir": f"{output}/base"}


def _oracle_recipe(
    base: Mapping[str, Any] | None, training: Mapping[str, Any], section: Mapping[str, Any], output: str
) -> dict[str, Any]:
    """Return the recipe of DPO from the base on the sample's pairs, with the base as reference (SePO, Eq. 5)."""
    from sepo.hosts.llamafactory.sample import PAIRS

    data = {"dataset": PAIRS, "dataset_dir": f"{output}/sample"}
    inherited: dict[str, Any] = {}
    if base is not None:
        kept = ("model_name_or_path", "model_revision", "template", "finetuning_type")
        inherited = {name: base[name] for name in kept if name in base}
    oracle = {
        **training,
        **data,
        **inherited,
        "do_train": True,
        **section,
        **_dpo_stage({**training, **section}, section),
    }
    oracle["output_dir"] = f"{output}/oracle"
    if base is None:
        return oracle
    adapters = _trained_adapters(base)
    if not _is_lora(base):
        oracle["model_name_or_path"] = base["output_dir"]
    elif oracle.get("quantization_bit"):
        # The host cannot create a new adapter over a quantized model, and without ref_model its reference would be the
        # raw model instead of the base.
        oracle |= {"adapter_name_or_path": adapters, "ref_model": oracle.get("model_name_or_path"),
                   "ref_model_adapters": adapters,
                   "ref_model_quantization_bit": oracle["quantization_bit"]}  # fmt: skip
    else:
        oracle |= {"adapter_name_or_path": adapters, "create_new_adapter": True}
    return oracle


def _reversed_recipe(oracle: Mapping[str, Any], output: str) -> dict[str, Any]:
    """Return the recipe of the oracle on the exchanged pairs of the sample, with the same base and reference."""
    from sepo.hosts.llamafactory.sample import REVERSED_PAIRS

    return {**oracle, "dataset": REVERSED_PAIRS, "output_dir": f"{output}/{REVERSED}"}


def _check_reversed(oracle: Mapping[str, Any], section: Mapping[str, Any], policy: Mapping[str, Any]) -> None:
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
        return {"stage": _OWN_DPO["stage"], "objective": section.get("objective", _OWN_DPO["objective"])}
    return {"stage": "dpo"}


def _trained_adapters(recipe: Mapping[str, Any]) -> str:
    """Return the adapters of the model that a LoRA run trains: its own, after those below a new one."""
    below = names_of(recipe.get("adapter_name_or_path")) if recipe.get("create_new_adapter") else ()
    return ",".join([*below, str(recipe["output_dir"])])


def _is_lora(recipe: Mapping[str, Any]) -> bool:
    return recipe.get("finetuning_type", "lora") == "lora"


def _oracle_keys(oracle: Mapping[str, Any], negative: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the policy's ``oracle_*`` keys, which name the outputs of the earlier steps.

    Args:
        oracle: the recipe of the oracle.
        negative: the recipe of the model on exchanged pairs; None if the oracle is compared with its base.
    """
    model = oracle.get("model_name_or_path")  # checked with the step
    if not _is_lora(oracle):
        model = model if negative is None else negative["output_dir"]
        keys = {"oracle_model": oracle["output_dir"], "oracle_base_model": model}
    else:
        keys = {"oracle_base_model": model, "oracle_model_adapters": _trained_adapters(oracle)}
        if negative is not None:
            keys["oracle_base_model_adapters"] = _trained_adapters(negative)
    if oracle.get("adapter_name_or_path") and negative is None:
        keys["oracle_base_model_adapters"] = ",".join(names_of(oracle["adapter_name_or_path"]))
    if oracle.get("quantization_bit"):
        keys["oracle_model_quantization_bit"] = oracle["quantization_bit"]
    if oracle.get("model_revision") and not _is_output(model, step=oracle):
        keys["oracle_base_model_revision"] = oracle["model_revision"]
    return keys


def _is_output(name: Any, *, step: Mapping[str, Any]) -> bool:
    """Return whether a name is the directory of another step of the same pipeline."""
    return Path(str(name)).parent == Path(str(step["output_dir"])).parent


def _data_keys(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that determine the rows."""
    names = (
        "dataset", "dataset_dir", "eval_dataset", "val_size", "max_samples", "seed", "mix_strategy", "interleave_probs",
        "cache_dir", "media_dir",
    )  # fmt: skip
    return {name: recipe[name] for name in names if name in recipe}


def check_steps(steps: Sequence[Step]) -> None:
    """Check the recipes of all steps before the first one runs.

    Raises:
        SepoError: a recipe is invalid, or names data or models that do not exist.
    """
    from sepo.hosts.llamafactory.checks import check_datasets, check_names
    from sepo.hosts.llamafactory.recipe import host_keys

    known, settings = host_keys(), None
    for step in steps:
        if step.name == "policy":
            _, settings = resolve(step.recipe, host_keys=known)
            check_datasets(step.recipe)
        elif is_sepo_stage(step.recipe.get("stage")):
            try:
                resolve(step.recipe, host_keys=known)
            except SepoError as error:
                raise SepoError(f"step '{step.name}': {error}") from error
        elif step.name != "sample":
            for name in step.recipe:
                if name not in known:
                    raise SepoError(f"step '{step.name}': {unknown_key(name, known)}")
        if step.name != "sample" and not step.recipe.get("model_name_or_path"):
            raise SepoError(f"step '{step.name}' has no model_name_or_path; set it on top or in its section.")
    for step in steps:
        if step.name != "sample":
            own = settings if step.name == "policy" else None
            check_names(step.recipe, own, made_earlier=functools.partial(_is_output, step=step.recipe))


def checked_steps(recipe: Mapping[str, Any]) -> tuple[list[Step], list[bool]]:
    """Plan and check the steps of a pipeline, before the first one runs.

    Args:
        recipe: keys and values, from ``read_pipeline``.

    Returns:
        The steps, and whether each is finished.

    Raises:
        SepoError: the recipe is invalid, or a finished step was run with other settings.
    """
    refuse_comparison(recipe)
    steps = plan_steps(recipe)
    check_steps(steps)
    records = Path(str(recipe["output_dir"])) / RECORDS
    return steps, [is_step_finished(step, records) for step in steps]


def run_pipeline(recipe: Mapping[str, Any]) -> list[Step]:
    """Run the steps that are not finished.

    Args:
        recipe: keys and values, from ``read_pipeline``.

    Returns:
        The steps.

    Raises:
        SepoError: the recipe is invalid, a step failed, or a finished step was run with other settings.
    """
    steps, finished = checked_steps(recipe)
    records = Path(str(recipe["output_dir"])) / RECORDS
    for number, (step, done) in enumerate(zip(steps, finished, strict=True), start=1):
        title = f"[{number}/{len(steps)}] {step.name}"
        if done:
            print(f"{title}: finished before, in {step.recipe['output_dir']}", flush=True)
            continue
        print(f"{title}: {step.recipe['output_dir']}", flush=True)
        start = time.monotonic()
        _run(step, records, template=steps[-1].recipe.get("template"))
        record_step(step, records)
        print(f"{title}: done in {time.monotonic() - start:.0f} s", flush=True)
    return steps


def is_step_finished(step: Step, records: Path) -> bool:
    """Return whether a step was run before.

    Args:
        step: the step.
        records: directory of the records.

    Raises:
        SepoError: it was run with other settings.
    """
    record = records / f"{step.name}.done.json"
    before, now = read_record(record), redacted(step.recipe)
    if before is None:
        return False
    if before.get("stage") == "dpo" and _OWN_DPO.items() <= now.items():
        before |= _OWN_DPO  # the same loss, trained by the host
    changed = changes(before, now)
    if changed is not None:
        raise SepoError(
            f"step '{step.name}' in {step.recipe['output_dir']} was run with other settings ({changed}). Choose "
            f"another output_dir, or remove {record} and {step.recipe['output_dir']} to run it again."
        )
    return True


def record_step(step: Step, records: Path) -> None:
    """Record that a step is finished."""
    write_record(records / f"{step.name}.done.json", step.recipe)


def draw_sample(step: Step, *, template: str | None) -> None:
    """Run the step ``sample``: write the pairs and responses that base and oracle are trained on.

    Args:
        step: the step.
        template: the chat template of the policy. Not a key of the step: the record of a sample that was drawn before
            has none.

    Raises:
        SepoError: the rows cannot be used, or the directory contains other data sets.
    """
    from sepo.hosts.llamafactory.sample import write_sample

    folder, losses = Path(step.recipe["output_dir"]), RowLosses()
    recipe = {**step.recipe, "template": template}
    count = write_sample(recipe, ratio=step.recipe["oracle_sample_ratio"], folder=folder, losses=losses)
    losses.log()
    print(f"{count} pairs for base and oracle", flush=True)


def declare_pairs(step: Step) -> None:
    """Declare the data set of exchanged pairs, if a step is the one that is trained on them, before it runs.

    Raises:
        SepoError: there is no sample.
    """
    from sepo.hosts.llamafactory.sample import declare_reversed_pairs

    if step.name == REVERSED:
        declare_reversed_pairs(Path(step.recipe["dataset_dir"]))


def _run(step: Step, records: Path, *, template: str | None = None) -> None:
    records.mkdir(parents=True, exist_ok=True)
    if step.name == "sample":
        draw_sample(step, template=template)
        return
    declare_pairs(step)
    started, output = records / f"{step.name}.started.json", Path(str(step.recipe["output_dir"]))
    if read_record(started) == redacted(step.recipe) and not is_resumable(step.recipe) and output.is_dir():
        shutil.rmtree(output)  # of an attempt that was killed; the host would refuse its files
    write_record(started, step.recipe)
    recipe_file = records / f"{step.name}.yaml"
    status = train(step.recipe, recipe_file)
    if status:
        raise SepoError(
            f"step '{step.name}' failed with exit status {status}; its output is above. Fix the cause and run the same "
            f"command again: finished steps are skipped. This step alone: {command_line(step.recipe, recipe_file)}"
        )
