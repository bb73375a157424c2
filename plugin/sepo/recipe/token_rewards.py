"""T-REG's keys in a recipe: hyperparameters of the regularizer, and the source of its token rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sepo.errors import SepoError
from sepo.objectives import Method, resolve_method
from sepo.objectives.presets import find_objective
from sepo.recipe.keys import SepoArguments
from sepo.recipe.model_specs import ModelSpec
from sepo.recipe.reference import reference_spec
from sepo.recipe.settings import TokenRewardSource

CONTRASTIVE = "contrastive"
"""Token scorer that selects by the token rewards of contrastive prompts."""


def treg_hyperparameters(
    arguments: SepoArguments, objective: str | Mapping[str, float], objectives: Sequence[str], *, stage: str
) -> dict[str, Any]:
    """Return the regularizer's hyperparameters under their names in the objective, or in the objectives of a sum.

    ``dpo_reg`` and ``simpo_reg`` define ``alpha`` and ``weighting`` themselves; every other objective takes
    ``treg_alpha`` and ``treg_weighting``. Stage ``treg`` enables the regularizer for those as well, with the alpha of
    ``dpo_reg``: training without it under the stage's name would be unexpected. A sum of objectives has it only through
    one that defines it.

    Args:
        arguments: the keys of this package.
        objective: name of the objective, or the factors of a sum.
        objectives: names of the objectives, without the likelihood ``sft`` of a sum.
        stage: the recipe's stage.
    """
    alpha, weighting = arguments.treg_alpha, arguments.treg_weighting
    own = [name for name in objectives if "weighting" in find_objective(name).settings]
    if alpha is None and stage == "treg" and not own and isinstance(objective, str):
        alpha = float(resolve_method("dpo_reg").hyperparameters["alpha"])
    given = {name: value for name, value in (("alpha", alpha), ("weighting", weighting)) if value is not None}
    if not own:
        return {f"treg_{name}": value for name, value in given.items()}
    prefixes = [""] if len(objectives) == 1 else [f"{name}." for name in own]
    return {f"{prefix}{name}": value for prefix in prefixes for name, value in given.items()}


def token_reward_source(arguments: SepoArguments, given: Mapping[str, Any], method: Method) -> TokenRewardSource | None:
    """Return the source of token rewards: the oracle, ``treg_eval_model``, the reference, or the starting policy.

    Args:
        arguments: the keys of this package.
        given: the recipe's keys and values; keys of the host name the reference and the policy.
        method: the resolved method.

    Returns:
        The source, or None if token rewards neither regularize nor select.

    Raises:
        SepoError: If keys of T-REG have no effect, or contradict each other.
    """
    unread = [] if method.needs_token_rewards else ["treg_weighting"]
    if not method.needs_token_rewards and method.scorer != CONTRASTIVE:
        unread += ["treg_rewards", "treg_eval_model"]
    for name in unread:
        if getattr(arguments, name) is not None:
            raise SepoError(
                f"{name} is set, but no token-reward regularizer is on; set treg_alpha above 0 (any objective), or "
                f"remove {name}."
            )
    if len(unread) > 1:
        return None
    origin = arguments.treg_rewards or "prompts"
    if origin == "oracle":
        if arguments.treg_eval_model is not None:
            raise SepoError(
                "treg_eval_model is set, but treg_rewards: oracle takes the token rewards from the oracle; remove one "
                "of them."
            )
        if method.needs_scores and method.scorer != "oracle":
            raise SepoError(
                f"treg_rewards: oracle and token_scorer: {method.scorer} would both write the score columns; set "
                "token_scorer: oracle, policy_ref, confidence or none, or treg_rewards: prompts."
            )
        return TokenRewardSource(origin="oracle")
    return _from_prompts(arguments, given)


def reward_notes(stage: str, source: TokenRewardSource | None) -> tuple[str, ...]:
    """Return the log lines about the source of token rewards."""
    if source is None:
        return ("treg_alpha is 0: the objective is trained without T-REG's regularizer.",) if stage == "treg" else ()
    if source.model is None:
        return ("T-REG's token rewards come from the oracle: sigmoid(log pi_oracle - log pi_oracle_base) - 0.5.",)
    name = ",".join((source.model.model, *source.model.adapters))
    return (f"T-REG's token rewards come from contrastive prompts to {name} ({source.key}).",)


def _from_prompts(arguments: SepoArguments, given: Mapping[str, Any]) -> TokenRewardSource:
    if arguments.treg_eval_model is not None:
        model = ModelSpec(arguments.treg_eval_model, revision=arguments.treg_eval_model_revision)
        return TokenRewardSource("prompts", model, "treg_eval_model")
    key, model = reference_spec(given)
    return TokenRewardSource(origin="prompts", model=model, key=key)
