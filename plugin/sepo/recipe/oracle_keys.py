"""The oracle's keys in a recipe, resolved to the oracle and its base."""

from __future__ import annotations

from sepo.errors import SepoError
from sepo.recipe.keys import SepoArguments, names_of
from sepo.recipe.model_specs import ModelSpec, OracleSpec, revisions_for


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
