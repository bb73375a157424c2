"""The reference in a recipe: whether a run needs one, its model, and whether its log-probabilities are precomputed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sepo.errors import SepoError
from sepo.objectives import Method
from sepo.recipe.keys import SepoArguments, as_number, keys_of, names_of
from sepo.recipe.model_specs import ModelSpec, revisions_for

OWN_START = "model_name_or_path"
"""Key of the reference if ``ref_model`` is not set: the policy before training."""


@dataclass(frozen=True)
class PrecomputedReference:
    """Reference whose log-probabilities are stored before training, so that training loads no second model.

    Args:
        model: the reference.
        key: the recipe key that names it.
    """

    model: ModelSpec
    key: str


def runs_reference(method: Method, precomputed: PrecomputedReference | None) -> bool:
    """Return whether a reference model runs in training: the method has a reference, and it is not precomputed."""
    return method.needs_reference and precomputed is None


def reference_spec(given: Mapping[str, Any]) -> tuple[str, ModelSpec]:
    """Return the reference: ``ref_model``, or the model that the policy starts from, adapters included.

    Args:
        given: the recipe's keys and values.

    Returns:
        The key that names the model, and the model.

    Raises:
        SepoError: If the quantization is not a number, or the revisions do not fit the adapters.
    """
    own = names_of(given.get("model_revision"))  # the hosts apply it to ref_model and to all adapters as well
    key, adapters, bits, at, adapters_at = OWN_START, "adapter_name_or_path", "quantization_bit", own, own
    if given.get("ref_model"):
        key, adapters, bits = "ref_model", "ref_model_adapters", "ref_model_quantization_bit"
        at = names_of(given.get("ref_model_revision")) or own
        adapters_at = names_of(given.get("ref_model_adapters_revision")) or own
    number = given.get(bits)
    quantization = None if number in (None, "") else as_number(bits, number, int)
    names = names_of(given.get(adapters))
    revisions = revisions_for(names, adapters_at, key=f"{adapters}_revision")
    return key, ModelSpec(str(given.get(key) or ""), names, quantization, next(iter(at), None), revisions)


def own_start(given: Mapping[str, Any]) -> ModelSpec:
    """Return the model that the policy starts from, adapters included.

    Raises:
        SepoError: See ``reference_spec``.
    """
    return reference_spec({name: value for name, value in given.items() if name not in keys_of("reference")})[1]


def base_of_reference_adapters(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that ``ref_model_adapters`` without ``ref_model`` implies: the policy's model and quantization.

    The host ignores such adapters, so that the reference would silently be another model.

    Args:
        given: the recipe's keys and values.

    Returns:
        ``ref_model`` and, if the policy is quantized, ``ref_model_quantization_bit``; empty if ``ref_model_adapters``
        is absent or ``ref_model`` is set.
    """
    if not given.get("ref_model_adapters") or given.get("ref_model"):
        return {}
    bits = given.get("ref_model_quantization_bit", given.get("quantization_bit"))
    return {"ref_model": given.get(OWN_START), **({} if bits is None else {"ref_model_quantization_bit": bits})}


def precomputed_reference(
    arguments: SepoArguments, given: Mapping[str, Any], method: Method
) -> PrecomputedReference | None:
    """Return the reference whose log-probabilities ``ref_precompute`` stores before training.

    Args:
        arguments: the keys of this package.
        given: the recipe's keys and values.
        method: the resolved method.

    Returns:
        The reference, or None if ``ref_precompute`` is off.

    Raises:
        SepoError: If the method has no reference, or needs more than the log-probabilities of the responses.
    """
    if not arguments.ref_precompute:
        return None
    if not method.needs_reference:
        raise SepoError(
            f"ref_precompute is set, but objective {method.name} trains without a reference; remove ref_precompute."
        )
    if method.needs_kl:
        raise SepoError(
            f"ref_precompute is set, but objective {method.name} compares whole distributions with the reference, and "
            "only the log-probabilities of the responses' tokens are stored; remove ref_precompute, or use another "
            "objective (e.g. dpo)."
        )
    key, model = reference_spec(given)
    return PrecomputedReference(model, key)


def reference_notes(reference: PrecomputedReference | None, method: Method) -> tuple[str, ...]:
    """Return the log lines about a reference that is run before training."""
    if reference is None:
        return ()
    name = ",".join((reference.model.model, *reference.model.adapters))
    note = f"the reference is {name} ({reference.key}); its log-probabilities are computed before training."
    if reference.key != OWN_START or not method.token_scorer.compares_with_reference:
        return (note,)
    return (
        note,
        "the reference is the starting policy: at step 1 the alignment scores are zero up to rounding, so the selected "
        "tokens are not meaningful until the policy has moved.",
    )
