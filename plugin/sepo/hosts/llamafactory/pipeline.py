"""`sepo pipeline`: runs the steps of a chain (pairs, base, oracle, policy) that are not finished, and records them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sepo.errors import SepoError
from sepo.hosts.llamafactory.chain_oracles import OWN_DPO
from sepo.hosts.llamafactory.chain_pairs import PAIRS, declare_data
from sepo.hosts.llamafactory.chain_status import DONE, RECIPE, RECORDS, STARTED, is_oracle
from sepo.hosts.llamafactory.chain_steps import Step, last_model, plan_steps
from sepo.hosts.llamafactory.child_runs import changes, command_line, is_resumable, read_record, train, write_record
from sepo.hosts.llamafactory.reading import Recipe, override_values, reading_error, recipe_of, secrets_of_parent
from sepo.recipe.comparison import refuse_comparison
from sepo.recipe.reference import own_start
from sepo.redaction import HIDDEN, redacted, remember_secrets
from sepo.training.row_losses import RowLosses


def read_pipeline(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a pipeline recipe.

    Args:
        path: YAML with shared keys on top and the sections ``pairs``, ``base``, ``oracle`` and ``policy``.
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
    kept = {str(name): value for name, value in recipe.items() if value != HIDDEN} | secrets_of_parent()
    remember_secrets(kept)
    return recipe_of(kept, file=str(path), overrides=overrides)


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
    from sepo.hosts.llamafactory.chain_checks import check_steps

    steps = as_begun(plan_steps(recipe), recipe)
    check_steps(steps)
    return steps, [is_step_finished(step, records_of(step)) for step in steps]


def as_begun(steps: Sequence[Step], recipe: Mapping[str, Any]) -> list[Step]:
    """Return the steps as they were begun: without the default ``pref_ftx`` of an oracle that was begun without it.

    Args:
        steps: the planned steps.
        recipe: the recipe of the pipeline.
    """
    if {**recipe, **(recipe.get("oracle") or {})}.get("pref_ftx") is not None:
        return list(steps)
    return [_without_likelihood(step) if is_oracle(step.name) and _began_without(step) else step for step in steps]


def _began_without(step: Step) -> bool:
    records = records_of(step)
    found = (read_record(records / f"{step.name}{end}") for end in (DONE, STARTED))
    begun = next((recipe for recipe in found if recipe is not None), None)
    return begun is not None and "pref_ftx" not in begun


def _without_likelihood(step: Step) -> Step:
    return replace(step, recipe={name: value for name, value in step.recipe.items() if name != "pref_ftx"})


def records_of(step: Step) -> Path:
    """Return the directory with the record of a step, which is that of its round."""
    return Path(step.output).parent / RECORDS


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
    for number, (step, done) in enumerate(zip(steps, finished, strict=True), start=1):
        title = f"[{number}/{len(steps)}] {step.title}"
        if done:
            print(f"{title}: finished before, in {step.output}", flush=True)
            continue
        print(f"{title}: {step.output}", flush=True)
        start = time.monotonic()
        _run(step, records_of(step), template=steps[-1].recipe.get("template"))
        record_step(step, records_of(step))
        print(f"{title}: done in {time.monotonic() - start:.0f} s", flush=True)
    if steps[-1].round is not None:
        named = " ".join(f"{name}={value}" for name, value in last_model(steps).items())
        print(f"policy of the last round: {named}", flush=True)
    return steps


def is_step_finished(step: Step, records: Path) -> bool:
    """Return whether a step was run before.

    Args:
        step: the step.
        records: directory of the records.

    Raises:
        SepoError: it was run with other settings.
    """
    record = records / f"{step.name}{DONE}"
    before, now = read_record(record), redacted(step.recipe)
    if before is None:
        return False
    if before.get("stage") == "dpo" and OWN_DPO.items() <= now.items():
        before |= OWN_DPO  # the same loss, trained by the host
    changed = changes(before, now)
    if changed is not None:
        raise SepoError(
            f"step '{step.title}' in {step.output} was run with other settings ({changed}). Choose "
            f"another output_dir, or remove {record} and {step.output} to run it again."
        )
    return True


def record_step(step: Step, records: Path) -> None:
    """Record that a step is finished."""
    write_record(records / f"{step.name}{DONE}", step.recipe)


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
    """Declare the data sets that a step reads and no step before it declares.

    These are the exchanged pairs or rejected responses for the model that is trained on them, and the evaluation data
    sets beside sampled pairs.

    Raises:
        SepoError: there is no sample, or there are no sampled pairs.
    """
    from sepo.hosts.llamafactory.sample import declare_derived

    if is_oracle(step.name):
        declare_derived(step.recipe["dataset"], Path(step.recipe["dataset_dir"]))
    if step.pairs is not None:
        declare_data(step.recipe, pairs=step.pairs, folder=step.declares)


def _run(step: Step, records: Path, *, template: str | None = None) -> None:
    records.mkdir(parents=True, exist_ok=True)
    declare_pairs(step)
    if step.name == "sample":
        draw_sample(step, template=template)
        return
    recipe_file = records / f"{step.name}{RECIPE}"
    how: dict[str, Any] = {}
    if step.name == PAIRS:  # continued by the command itself, which refuses other settings
        how = {"command": PAIRS, "processes": sampling_processes(step.recipe)}
    else:
        _remove_what_cannot_be_resumed(step, records)
    status = train(step.recipe, recipe_file, **how)
    if status:
        changed = f"For other settings of this step, remove {step.output} first. " if step.name == PAIRS else ""
        raise SepoError(
            f"step '{step.title}' failed with exit status {status}; its output is above. Fix the cause and run the "
            f"same command again: finished steps are skipped. {changed}This step alone: "
            f"{command_line(step.recipe, recipe_file, **how)}"
        )


def sampling_processes(recipe: Mapping[str, Any]) -> int:
    """Return the number of processes that sample and judge on this machine.

    They are as many as the host trains with, except that vLLM samples in one.

    Args:
        recipe: keys and values of `sepo pairs`.
    """
    from llamafactory.extras.misc import get_device_count, is_env_enabled

    from sepo.evaluation.vllm_sampling import why_not_vllm
    from sepo.pairs.settings import pairs_settings

    devices = get_device_count()
    if devices < 2 and not is_env_enabled("FORCE_TORCHRUN"):
        return 1
    if pairs_settings(recipe).engine != "transformers" and why_not_vllm(own_start(recipe), processes=1) is None:
        return 1
    return int(os.environ.get("NPROC_PER_NODE", devices))


def _remove_what_cannot_be_resumed(step: Step, records: Path) -> None:
    started, output = records / f"{step.name}{STARTED}", Path(step.output)
    if read_record(started) == redacted(step.recipe) and not is_resumable(step.recipe) and output.is_dir():
        shutil.rmtree(output)  # of an attempt that was killed; the host would refuse its files
    write_record(started, step.recipe)
