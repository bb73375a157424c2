"""`sepo bench`: measurement of a recipe."""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from sepo.console import size
from sepo.errors import SepoError
from sepo.hosts.llamafactory.bench.contenders import HOST_DPO, HOST_SIMPO, Contender, plan_contenders
from sepo.hosts.llamafactory.bench.external import External, Opened, no_externals
from sepo.hosts.llamafactory.bench.machine import machine, versions
from sepo.hosts.llamafactory.bench.memory import STEPS_MEASURED, can_measure_processes, child_peak, cuda_peak
from sepo.hosts.llamafactory.bench.recipe import check_keys, measured_recipe
from sepo.hosts.llamafactory.bench.report import loss_notes, print_result
from sepo.hosts.llamafactory.bench.rounds import Timings, speeds, timed_rounds
from sepo.hosts.llamafactory.bench.rows import selects_at_random
from sepo.hosts.llamafactory.bench.session import Session, open_session
from sepo.hosts.llamafactory.checks import check_datasets, check_policy
from sepo.hosts.llamafactory.pipeline import read_pipeline
from sepo.hosts.llamafactory.recipe import host_keys
from sepo.redaction import redacted
from sepo.scoring.hub import cached_if_unreachable

DEFAULT_ROUNDS = 5


def bench(
    recipe_file: Path,
    overrides: Sequence[str] = (),
    *,
    rounds: int = DEFAULT_ROUNDS,
    names: Sequence[str] | None = None,
    memory: bool = True,
    output: Path | None = None,
) -> dict[str, Any]:
    """Measure a recipe's contenders, print the table and write the result.

    Args:
        recipe_file: YAML of one of sepo's stages or of the host's ``dpo``.
        overrides: ``key=value`` words.
        rounds: number of timed rounds.
        names: a subset of the contenders; None for all.
        memory: whether to measure peak memory.
        output: JSON file to write, or None.

    Returns:
        The result; see ``measure``.

    Raises:
        SepoError: the recipe, the data or an option is invalid.
    """
    if output is not None and not output.resolve().parent.is_dir():
        raise SepoError(f"-o {output}: there is no directory {output.resolve().parent}; create it.")
    result = measure(read_pipeline(recipe_file, overrides), rounds=rounds, names=names, memory=memory)
    print_result(result)
    if output is not None:
        write_result(result, output)
    return result


def write_result(result: dict[str, Any], output: Path) -> None:
    """Write a result as JSON, and print the path."""
    output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written: {output}")


def measure(
    recipe: Mapping[str, Any],
    *,
    rounds: int = DEFAULT_ROUNDS,
    names: Sequence[str] | None = None,
    memory: bool = True,
    seed: int = 0,
    externals: Opened = no_externals,
) -> dict[str, Any]:
    """Time the training steps of a recipe's contenders, interleaved, and measure their peak memory.

    A step is the trainer's own ``training_step``, forward and backward, with the recipe's precision, quantization and
    gradient checkpointing. Optimizer steps are excluded: they are the same for all contenders.

    Args:
        recipe: keys and values, of one of sepo's stages or of the host's ``dpo``.
        rounds: number of timed rounds; in each, every contender runs on the same batch.
        names: a subset of the contenders; None for all.
        memory: whether to measure peak memory.
        seed: seed of the drawn rows, of the random scores and of the noise added to the policy's weights.
        externals: opens other work that is timed in the same rounds.

    Returns:
        Plain JSON values: ``versions``, ``machine``, ``recipe``, ``setting``, ``model`` (parameters and bytes of its
        weights), ``rounds`` (pairs and tokens of each), ``contenders`` and ``notes``.

    Raises:
        SepoError: the recipe, the data or an option is invalid.
    """
    if rounds < 1:
        raise SepoError(f"--rounds is {rounds}; a number of at least 1 is expected.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SepoError("WORLD_SIZE is above 1, but bench measures one process; start it without torchrun.")
    known = host_keys()
    check_keys(recipe, host_keys=known)
    with tempfile.TemporaryDirectory(prefix="sepo-bench-") as folder:
        measured = measured_recipe(recipe, output_dir=str(Path(folder, "output")))
        contenders = plan_contenders(measured, host_keys=known, names=names)
        check_policy(measured)
        check_datasets(measured)
        with cached_if_unreachable():
            session = open_session(contenders, rounds=rounds, seed=seed)
        before = session.weights()
        with externals(session) as others, tqdm(desc="bench", unit="step", file=sys.stderr) as progress:
            progress.reset((len(contenders) + len(others)) * (rounds + 1 + memory))
            timings = _timed(session, others, rounds=rounds, progress=progress)
            task = {"recipe": measured, "rounds": rounds, "seed": seed}
            peaks, how = _peaks(session, others, task, folder=Path(folder), progress=progress) if memory else ({}, "")
        if not torch.equal(before, session.weights()):
            raise RuntimeError("the benchmark changed the model's weights")
        notes = [how] if how else []
        return _result(session, contenders, others, timings, recipe=recipe, peaks=peaks, notes=notes, seed=seed)


def _timed(session: Session, others: Sequence[External], *, rounds: int, progress: Any) -> Timings:
    def advance(name: str) -> None:
        progress.set_postfix_str(name)
        progress.update()

    outside = {other.name: other for other in others}

    def settle(name: str) -> None:
        if name in outside:
            outside[name].settle()
        else:
            session.settle(name)

    return timed_rounds(
        {
            **{name: functools.partial(session.step, name) for name in session.trainers},
            **{name: other.step for name, other in outside.items()},
        },
        rounds=rounds,
        warm_up=session.longest(1)[0],  # buffers reach their largest size before the timed rounds
        clock=time.perf_counter,
        synchronize=session.synchronize,
        settle=settle,
        on_step=advance,
    )


def _peaks(
    session: Session, others: Sequence[External], task: dict[str, Any], *, folder: Path, progress: Any
) -> tuple[dict[str, int | None], str]:
    """Return the peak memory by contender, and a note that defines it."""
    batches = session.longest(STEPS_MEASURED)
    peaks: dict[str, int | None] = {}
    failed: list[str] = []
    if session.device.type == "cuda":
        for name in session.trainers:
            step, settle = functools.partial(session.step, name), functools.partial(session.settle, name)
            peaks[name] = cuda_peak(step, settle, batches=batches)
            progress.update()
        how = "peak memory: memory allocated on the GPU in addition to the weights, on the longest batches."
    elif session.device.type != "cpu" or not can_measure_processes():
        return {}, f"peak memory cannot be measured on {session.device.type} under {sys.platform}."
    else:
        for name in session.trainers:
            progress.set_postfix_str(f"memory of {name}")
            peaks[name], reason = child_peak({**task, "contender": name}, folder=folder)
            failed += [f" Not measured for {name}: {reason}."] if reason else []
            progress.update()
        how = "peak memory: resident memory in addition to the loaded model, in a process each, on the longest batches."
    for other in others:
        progress.set_postfix_str(f"memory of {other.name}")
        peaks[other.name] = other.peak_memory(batches)
        progress.update()
    return peaks, how + "".join(failed)


def _result(
    session: Session,
    contenders: Sequence[Contender],
    others: Sequence[External],
    timings: Timings,
    *,
    recipe: Mapping[str, Any],
    peaks: Mapping[str, int | None],
    notes: list[str],
    seed: int,
) -> dict[str, Any]:
    found = speeds(timings.seconds, pairs=session.pairs, tokens=session.tokens, baselines=(HOST_DPO, HOST_SIMPO))
    model = session.facts()

    def entry(name: str, label: str, settings: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
        peak, reference = peaks.get(name), session.reference_bytes.get(name, 0)
        return {
            "name": name,
            "label": label,
            "settings": settings,
            "seconds": timings.seconds[name],
            "pairs_per_second": found[name].pairs_per_second,
            "tokens_per_second": found[name].tokens_per_second,
            "ratio_to_host_dpo": found[name].ratios.get(HOST_DPO),
            "ratio_to_host_simpo": found[name].ratios.get(HOST_SIMPO),
            "peak_memory_bytes": peak,
            "peak_memory_with_weights_bytes": None if peak is None else model["weights_bytes"] + reference + peak,
            "reference_model_bytes": reference,
            "first_batch_loss": timings.losses[name],
            **facts,
        }

    entries = [
        entry(each.name, each.label, None if each.settings is None else each.settings.as_dict(), {})
        for each in contenders
    ]
    # there is a note if the host's dpo has another reference than sepo's, or the host's losses have no router loss
    differ = {HOST_DPO} if session.notes else set()
    differ |= {HOST_DPO, HOST_SIMPO} if _adds_router_loss(contenders) else set()
    losses = {each.name: timings.losses[each.name] for each in contenders if each.name not in differ}
    setting = {"rounds": len(session.pairs), "pairs_per_step": session.pairs[0], "seed": seed, "optimizer_steps": False}
    return {
        "versions": versions(),
        "machine": machine(cuda=session.device.type == "cuda"),
        "recipe": redacted(recipe),
        "setting": setting,
        "model": model,
        "rounds": [{"pairs": p, "tokens": t} for p, t in zip(session.pairs, session.tokens, strict=True)],
        "contenders": [*entries, *(entry(each.name, each.label, None, each.facts) for each in others)],
        "notes": [*_notes(session, contenders), *notes, *session.notes, *loss_notes(losses)],
    }


def _notes(session: Session, contenders: Sequence[Contender]) -> list[str]:
    notes = [
        "a step is the forward and backward pass of the trainer's own training step, without the optimizer step, which "
        "is the same for all. Medians over the rounds; ratios within a round.",
    ]
    resolved = [contender.settings for contender in contenders if contender.settings is not None]
    random = [settings.method for settings in resolved if selects_at_random(settings)]
    if not all(method.weighs_by_scores for method in random):
        notes.append("tokens are selected by random scores, as many as with an oracle; no oracle was run.")
    if any(method.weighs_by_scores for method in random):
        notes.append("tokens are weighed by random scores; no oracle was run.")
    if any(settings.token_rewards is not None for settings in resolved):
        notes.append("token rewards are random numbers; none were computed.")
    if any(settings.precomputed_reference is not None for settings in resolved):
        notes.append("precomputed reference log-probabilities are random numbers; the loss over them is meaningless.")
    if _adds_router_loss(contenders):
        notes.append(
            "the losses of sepo's stages include the router loss (moe_aux_loss_coef), which the host's have not."
        )
    second = max(session.reference_bytes.values())
    if second:
        labels = ", ".join(contender.label for contender in contenders if session.reference_bytes[contender.name])
        notes.append(f"the reference is a second model, with {size(second)} of additional weights, for: {labels}.")
    notes.append("loss: on the first batch, for a policy whose starting weights have small seeded noise added.")
    return notes


def _adds_router_loss(contenders: Sequence[Contender]) -> bool:
    return any(each.settings is not None and each.settings.router_loss_weight > 0 for each in contenders)
