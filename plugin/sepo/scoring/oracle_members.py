"""The oracles of a run one by one: those of a list, and the checkpoints of each."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sepo.errors import SepoError
from sepo.recipe.model_specs import ModelSpec, OracleSet, OracleSpec
from sepo.scoring.hub_files import ADAPTER, MODEL

_CHECKPOINT = re.compile(r"checkpoint-([0-9]+)")


def oracle_members(
    oracles: OracleSet | None, *, made_earlier: Callable[[str], bool] = lambda name: False
) -> tuple[OracleSpec, ...]:
    """Return the oracles whose scores are averaged, each checkpoint as an oracle of its own.

    Args:
        oracles: the oracles of a recipe, or None.
        made_earlier: returns whether a directory is the output of an earlier run, which need not exist yet; its
            checkpoints are not looked for.

    Raises:
        SepoError: If a directory has too few checkpoints, or not those of the same steps as the oracle's.
    """
    if oracles is None:
        return ()
    if oracles.checkpoints is None:
        return oracles.members
    return tuple(
        each for member in oracles.members for each in _checkpoints_of(member, oracles, made_earlier=made_earlier)
    )


def _checkpoints_of(member: OracleSpec, oracles: OracleSet, *, made_earlier: Callable[[str], bool]) -> list[OracleSpec]:
    assert oracles.checkpoints is not None
    sides = (member.oracle, member.base) if oracles.base_checkpoints else (member.oracle,)
    if any(made_earlier(_trained(spec)) for spec in sides):
        return [member]
    steps = _steps(_trained(member.oracle))
    if len(steps) < oracles.checkpoints:
        raise SepoError(
            f"oracle_checkpoints is {oracles.checkpoints}, but '{_trained(member.oracle)}' has {len(steps)} "
            "checkpoints (checkpoint-STEP with a model or an adapter); set a smaller number, or train the oracle with "
            "a smaller save_steps and a larger save_total_limit."
        )
    last = steps[-oracles.checkpoints :]
    if not oracles.base_checkpoints:
        return [OracleSpec(_at(member.oracle, step), member.base) for step in last]
    missing = [step for step in last if step not in _steps(_trained(member.base))]
    if missing:
        raise SepoError(
            f"oracle_base_checkpoints is set, but '{_trained(member.base)}' has no checkpoint-{missing[0]}, which the "
            "oracle has; train both with the same steps, or remove oracle_base_checkpoints."
        )
    return [OracleSpec(_at(member.oracle, step), _at(member.base, step)) for step in last]


def _trained(spec: ModelSpec) -> str:
    """Return the name of the last part of a model, which its training wrote: its last adapter, or the model."""
    return spec.adapters[-1] if spec.adapters else spec.model


def _steps(name: str) -> list[int]:
    """Return the steps of the whole checkpoints in the directory of a training, in increasing order.

    Raises:
        SepoError: If there is no such directory.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise SepoError(
            f"oracle_checkpoints is set, but '{name}' is no local directory; name the output_dir of the oracle's "
            "training, or list the checkpoints in oracles."
        )
    found = ((_CHECKPOINT.fullmatch(place.name), place) for place in folder.iterdir() if place.is_dir())
    return sorted(int(name.group(1)) for name, place in found
                  if name and any((place / marker).is_file() for marker in (ADAPTER, MODEL)))  # fmt: skip


def _at(spec: ModelSpec, step: int) -> ModelSpec:
    """Return a model at a step of its training."""
    place = str(Path(_trained(spec)) / f"checkpoint-{step}")
    if not spec.adapters:
        return replace(spec, model=place)
    return replace(spec, adapters=(*spec.adapters[:-1], place))
