"""The oracle's keys in a recipe, resolved to the oracle and its base, or to several."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sepo.errors import SepoError
from sepo.recipe.keys import SepoArguments, names_of
from sepo.recipe.model_specs import ModelSpec, OracleSet, OracleSpec, revisions_for
from sepo.recipe.oracle_lists import MEMBER_KEYS, oracle_items


def oracle_set(arguments: SepoArguments, *, reader: str) -> OracleSet:
    """Return the oracles of a recipe and what is made of their scores.

    Args:
        arguments: the keys of this package.
        reader: what needs an oracle, for the message.

    Raises:
        SepoError: If a model is not named, an oracle is named twice or equals its base, or a key has no effect.
    """
    if arguments.oracle_base_checkpoints and arguments.oracle_checkpoints is None:
        raise SepoError(
            "oracle_base_checkpoints is set, but oracle_checkpoints is not; set oracle_checkpoints, or remove it."
        )
    items: list[dict[str, Any]] = [{}] if arguments.oracles is None else oracle_items(arguments.oracles)
    for name in MEMBER_KEYS:
        if arguments.oracles is not None and getattr(arguments, name) and all(name in item for item in items):
            raise SepoError(f"{name} is set, but every oracle in oracles sets its own; remove one of them.")
    members = []
    for number, item in enumerate(items, start=1):
        try:
            _check_member(arguments, item)
            members.append(oracle_spec(replace(arguments, **item), reader=reader))
        except SepoError as error:
            raise error if arguments.oracles is None else SepoError(f"oracles, oracle {number}: {error}") from error
    for number, member in enumerate(members, start=1):
        if member in members[: number - 1]:
            raise SepoError(f"oracles, oracle {number}: {member.text} is in the list twice; remove one of them.")
    return OracleSet(
        tuple(members),
        arguments.oracle_scores or "ratio",
        arguments.oracle_checkpoints,
        bool(arguments.oracle_base_checkpoints),
    )


def _check_member(arguments: SepoArguments, item: dict[str, Any]) -> None:
    """Raise if an oracle of the list sets the revision of a model that neither it nor the recipe names."""
    for name in item:
        model = name.removesuffix("_revision")
        if model != name and not (item.get(model) or getattr(arguments, model)):
            raise SepoError(f"{name} is set, but {model} is not; set {model}, or remove {name}.")


def oracle_spec(arguments: SepoArguments, *, reader: str) -> OracleSpec:
    """Return the oracle and its base.

    Args:
        arguments: the keys of this package.
        reader: what needs the oracle, for the message.

    Raises:
        SepoError: If a model is not named, or both are the same.
    """
    adapters = names_of(arguments.oracle_model_adapters)
    if arguments.oracle_model is None and not adapters:
        raise SepoError(
            f"no oracle is named, and {reader} needs one: "
            "set oracle_model (a full model trained with DPO) and oracle_base_model, or oracle_model_adapters (a LoRA "
            "adapter trained with DPO) over oracle_base_model."
        )
    if arguments.oracle_base_model is None and (arguments.oracle_model is None or not adapters):
        raise SepoError(
            "oracle_base_model is missing: set it to the model that the oracle was trained from; a token's score is "
            "log pi_oracle - log pi_base."
        )
    bits = arguments.oracle_model_quantization_bit
    model, model_at = arguments.oracle_model, arguments.oracle_model_revision
    base, base_at = arguments.oracle_base_model, arguments.oracle_base_model_revision
    if model is None:
        model, model_at = base, base_at
    elif base is None:
        base, base_at = model, model_at
    assert base is not None  # ensured by the two checks above
    assert model is not None
    return OracleSpec(
        oracle=_spec(model, model_at, arguments.oracle_model_adapters, arguments.oracle_model_adapters_revision,
                     bits=bits, key="oracle_model_adapters_revision"),
        base=_spec(base, base_at, arguments.oracle_base_model_adapters, arguments.oracle_base_model_adapters_revision,
                   bits=bits, key="oracle_base_model_adapters_revision"),
    )  # fmt: skip


def _spec(
    model: str, revision: str | None, adapters: str | None, at: str | None, *, bits: int | None, key: str
) -> ModelSpec:
    names = names_of(adapters)
    return ModelSpec(model, names, bits, revision, revisions_for(names, names_of(at), key=key))
