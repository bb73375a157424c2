"""`sepo plan` from recipe to printed account."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sepo.console import print_lines
from sepo.errors import SepoError
from sepo.hosts.llamafactory.chain_steps import SECTIONS
from sepo.hosts.llamafactory.pipeline import read_pipeline
from sepo.hosts.llamafactory.plan.account import Account, account_for
from sepo.hosts.llamafactory.plan.changes import Change, changes, enough, peaks
from sepo.hosts.llamafactory.plan.pairs import pairs_account, samples_pairs
from sepo.hosts.llamafactory.plan.pairs_report import fitting_batch, pairs_plan_values, print_pairs_plan
from sepo.hosts.llamafactory.plan.recipe import how_loaded, planned_run
from sepo.hosts.llamafactory.plan.report import headline, plan_values, print_plan
from sepo.hosts.llamafactory.plan.rto import planned_rto, rto_account
from sepo.hosts.llamafactory.plan.rto_report import rto_headline, rto_savings
from sepo.hosts.llamafactory.reading import Recipe
from sepo.recipe.comparison import refuse_comparison
from sepo.recipe.stage_names import RTO, is_sepo_stage
from sepo.timing import Timing


def plan(
    recipe_file: Path,
    overrides: Sequence[str] = (),
    *,
    gpu: str | None = None,
    processes: int | None = None,
    tokens: int | None = None,
    output: Path | None = None,
    timing: Timing | None = None,
) -> dict[str, Any]:
    """Estimate a recipe's memory, print the account, and report whether it fits.

    Args:
        recipe_file: a recipe of one of sepo's stages.
        overrides: ``key=value`` words.
        gpu: memory of a device (``24GiB``); None for that of this machine's GPU, if it has one.
        processes: number of training processes; None for NPROC_PER_NODE times NNODES, or one.
        tokens: tokens of the longest device batch, with prompts shared; None for the maximum under the cutoff.
        output: JSON file to write, or None.
        timing: counts the seconds of the steps, or None.

    Returns:
        The plan as plain JSON values.

    Raises:
        SepoError: the recipe or an option is invalid, or a configuration cannot be read.
    """
    if output is not None and not output.resolve().parent.is_dir():
        raise SepoError(f"-o {output}: there is no directory {output.resolve().parent}; create it.")
    for name, number in (("--processes", processes), ("--tokens", tokens)):
        if number is not None and number < 1:
            raise SepoError(f"{name} is {number}; a number of at least 1 is expected.")
    timing = timing or Timing()
    with timing.step("recipe"):
        read = read_pipeline(recipe_file, overrides)
        recipe = Recipe({name: value for name, value in read.items() if value is not None}, read.origins)
        _refuse_pipeline(recipe)
        on_cpu = how_loaded(recipe).on_cpu
        limit, where = (_bytes_of(gpu), "a device") if gpu is not None else device_memory(on_cpu=on_cpu)
    values: dict[str, Any] = {}
    sampled = samples_pairs(recipe)
    if recipe.get("stage") == RTO:
        if tokens is not None:
            raise SepoError("--tokens is for batches of pairs, and stage rto has none; remove it.")
        values = _plan_rto(recipe, limit=limit, where=where, processes=processes, timing=timing)
    elif is_sepo_stage(recipe.get("stage")) or not sampled:
        values = _plan_training(recipe, limit=limit, where=where, processes=processes, tokens=tokens, timing=timing)
    elif tokens is not None:
        raise SepoError("--tokens is for batches of training, and the recipe has no stage of sepo; remove it.")
    if sampled:
        with timing.step("account of sepo pairs"):
            account = pairs_account(recipe, on_gpu=not on_cpu)
            fitting = fitting_batch(recipe, account, limit=limit)
        print_pairs_plan(account, limit=limit, where=where, on_gpu=not on_cpu, fitting=fitting)
        values["pairs"] = pairs_plan_values(account, limit=limit, fitting=fitting)
    if output is not None:
        output.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        print(f"written: {output}")
    return values


def _plan_training(
    recipe: Recipe, *, limit: float | None, where: str, processes: int | None, tokens: int | None, timing: Timing
) -> dict[str, Any]:
    """Print the account of training and return its values."""
    with timing.step("recipe"):
        run = planned_run(recipe, processes=_processes(processes))
    on_gpu = not run.on_cpu
    with timing.step("account"):
        account = account_for(run, on_gpu=on_gpu, tokens=tokens)
    print_lines([run.settings.first_screen])
    with timing.step("changes"):
        found, fitting = savings(recipe, account, limit=limit, on_gpu=on_gpu, tokens=tokens)
    print_plan(account, headline(account), limit=limit, where=where, on_gpu=on_gpu, found=found, fitting=fitting)
    return plan_values(account, limit=limit, found=found, fitting=fitting)


def _plan_rto(
    recipe: Recipe, *, limit: float | None, where: str, processes: int | None, timing: Timing
) -> dict[str, Any]:
    """Print the account of a run of stage `rto` and return its values."""
    with timing.step("recipe"):
        run = planned_rto(recipe, processes=_processes(processes))
    on_gpu = not run.on_cpu
    with timing.step("account"):
        account = rto_account(run, on_gpu=on_gpu)
    print_lines([run.settings.first_screen])
    with timing.step("changes"):
        found, fitting = rto_savings(recipe, account, limit=limit, on_gpu=on_gpu)
    heading = rto_headline(account)
    print_plan(account, heading, limit=limit, where=where, on_gpu=on_gpu, found=found, fitting=fitting)
    return {
        **plan_values(account, limit=limit, found=found, fitting=fitting),
        "sampled": run.sampled,
    }


def _refuse_pipeline(recipe: Mapping[str, Any]) -> None:
    refuse_comparison(recipe)  # its file may have the same sections
    for name in SECTIONS:
        if isinstance(recipe.get(name), Mapping):
            raise SepoError(
                f"section '{name}' is one of sepo pipeline; for the memory of its steps, run sepo pipeline with this "
                "file and --dry-run, or name the recipe of a step, OUTPUT_DIR/pipeline/policy.yaml."
            )


def savings(
    recipe: Mapping[str, Any], account: Account, *, limit: float | None, on_gpu: bool, tokens: int | None = None
) -> tuple[list[Change], tuple[dict[str, Any], float] | None]:
    """Return single changes, and the change that makes a run fit; neither if the run already fits."""
    if limit is not None and account.peak.total <= limit:
        return [], None
    found = changes(recipe, account, on_gpu=on_gpu, tokens=tokens)
    peak_with = peaks(account, on_gpu=on_gpu, tokens=tokens)
    return found, None if limit is None else enough(recipe, found, limit=limit, peak_with=peak_with)


def device_memory(*, on_cpu: bool) -> tuple[float | None, str]:
    """Return the memory available to a process and its description; None if this machine lacks the run's device."""
    import torch

    if not on_cpu:
        if not torch.cuda.is_available():
            return None, ""
        device = int(os.environ.get("LOCAL_RANK", "0"))
        return float(torch.cuda.get_device_properties(device).total_memory), torch.cuda.get_device_name(device)
    import psutil

    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return psutil.virtual_memory().available / processes, "this machine's free memory"


def _bytes_of(text: str) -> float:
    from accelerate.utils import convert_file_size_to_int

    try:
        value = float(convert_file_size_to_int(text))
    except ValueError:
        value = 0.0
    if value <= 0:
        raise SepoError(f"--gpu is '{text}'; a size such as 24GiB or 80GB is expected.")
    return value


def _processes(given: int | None) -> int:
    return given or int(os.environ.get("NPROC_PER_NODE", "1")) * int(os.environ.get("NNODES", "1"))
