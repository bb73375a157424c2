"""The steps of `sepo pipeline`, derived from its recipe: rounds of pairs, sample, base, oracle and policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sepo.errors import SepoError
from sepo.hosts.llamafactory.chain_oracles import OracleSection, oracle_keys, trained_oracles
from sepo.hosts.llamafactory.chain_pairs import (
    PAIRS,
    REFERENCE,
    check_sampling,
    pairs_recipe,
    reference_before,
    with_pairs,
)
from sepo.hosts.llamafactory.chain_recipes import base_recipe, continued, is_lora, trained_adapters
from sepo.recipe.keys import PIPELINE_KEYS, SAMPLING_KEYS, SEPO_KEYS
from sepo.recipe.resolve import unread_keys
from sepo.recipe.stage_names import RTO
from sepo.recipe.stages import registered_keys, with_stage_defaults
from sepo.redaction import redacted

SECTIONS = (PAIRS, "base", "oracle", "policy")
_SHARED_BY_ORACLE = ("batch_tokens", "head_chunk_tokens", "kept_activations_mb")
"""Shared keys of sepo that the oracle's step has, too."""
# Shared evaluation keys apply to the policy only: base and oracle train on a sample without evaluation rows.
_EVALUATION = (
    "eval_dataset", "val_size", "do_eval", "eval_strategy", "eval_steps", "eval_on_start", "eval_delay",
    "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "early_stopping_steps",
)  # fmt: skip
_START = ("model_name_or_path", "model_revision", "adapter_name_or_path")


@dataclass(frozen=True)
class Step:
    """One run of the chain.

    Args:
        name: ``pairs``, ``sample``, ``base``, ``oracle`` (and those of further oracles and of second models, see
            ``trained_oracles``) or ``policy``.
        recipe: keys and values of the run; a finished step with an unchanged recipe is not run again.
        round: number of its round, from 1; None if there is only one.
        pairs: directory of the sampled pairs that are the data set of the step; None if it reads other data.
        declares: the ``dataset_dir`` of the evaluation data sets that are declared in that of the step, beside the
            sampled pairs; None if there are none.
    """

    name: str
    recipe: dict[str, Any]
    round: int | None = None
    pairs: str | None = None
    declares: str | None = None

    @property
    def title(self) -> str:
        """Name with the round, if there are several."""
        return self.name if self.round is None else f"round {self.round}, {self.name}"

    @property
    def output(self) -> str:
        """The directory that the step writes."""
        return str(self.recipe["pairs_dir" if self.name == PAIRS else "output_dir"])


@dataclass(frozen=True)
class _Given:
    """A pipeline recipe in parts.

    Args:
        recipe: all of it.
        shared: keys on top that are no keys of the pipeline, without ``output_dir``.
        sections: sections by name; None for ``base: false``, ``oracle: false``, and a recipe without ``pairs``.
        output: directory of the first round.
    """

    recipe: Mapping[str, Any]
    shared: Mapping[str, Any]
    sections: Mapping[str, dict[str, Any] | None]
    output: str

    def directory(self, number: int) -> str:
        """Return the directory of a round; the first has that of a pipeline without rounds."""
        return self.output if number == 1 else f"{self.output}/round_{number}"


def plan_steps(recipe: Mapping[str, Any]) -> list[Step]:
    """Derive the recipes of the steps from a pipeline recipe; each reads the outputs of the steps before it.

    The steps of ``rounds: N`` are the first ones of ``rounds: N + 1``.

    Args:
        recipe: keys and values, from ``read_pipeline``.

    Returns:
        The steps in their order. ``pairs`` is only there with the section ``pairs``, ``base`` only in the first round
        and not with ``base: false``, the second models and further oracles only with a ``kind`` or ``seeds`` that has
        them, and with ``oracle: false`` the policy alone trains on the pairs.

    Raises:
        SepoError: ``output_dir`` is missing, a section or value has another form than expected, or keys contradict
            each other.
    """
    shared = {name: value for name, value in recipe.items() if name not in (*SECTIONS, *PIPELINE_KEYS)}
    sections = {name: _section(recipe, name) for name in SECTIONS}
    if not shared.get("output_dir"):
        raise SepoError("output_dir is missing; set it to the directory in which each step writes its subdirectory.")
    given = _Given(recipe, shared, sections, str(shared.pop("output_dir")))
    rounds = _rounds(given)
    if {**shared, **(sections["policy"] or {})}.get("stage") == RTO:
        raise SepoError(
            f"stage is {RTO} for the policy, which samples its responses while it trains, and the policies of a "
            "pipeline train on pairs; set another stage, and run sepo train with that one and the oracle of this "
            "pipeline (the oracle_* keys of OUTPUT_DIR/pipeline/policy.yaml)."
        )
    if sections["oracle"] is None:
        _check_without_oracle(given)
    check_sampling(shared, sections, rounds=rounds)
    steps: list[Step] = []
    first: list[Step] = []
    for number in range(1, rounds + 1):
        steps += [
            replace(step, round=number if rounds > 1 else None)
            for step in _steps_of(given, number, first=first, before=steps[-1].recipe if steps else None)
        ]
        first = first or list(steps)
    return steps


def _rounds(given: _Given) -> int:
    """Return the number of rounds."""
    value = given.recipe.get("rounds")
    if value is None:
        return 1
    if given.sections[PAIRS] is None:
        raise SepoError(
            f"rounds is {value}, but there is no section pairs, so every round would train on the same pairs; add "
            "pairs (pairs: {judge: ...} samples new ones from the policy of the round before), or remove rounds."
        )
    return int(PIPELINE_KEYS["rounds"].read(value))


def _check_without_oracle(given: _Given) -> None:
    """Raise if a recipe with ``oracle: false`` has nothing to do before the policy, or keys that train an oracle."""
    if given.sections[PAIRS] is None:
        raise SepoError(
            "oracle is false, but there is no section pairs, so only the policy would be trained; run sepo train, or "
            "remove it."
        )
    for name in ("base", "base_dataset", "base_dataset_dir", "oracle_sample_ratio"):
        if given.recipe.get(name):
            raise SepoError(f"{name} is set, but with oracle: false neither base nor oracle is trained; remove it.")


def _section(recipe: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    absent: dict[str, Any] | None = None if name == PAIRS else {}
    section = recipe.get(name, absent)
    if name != "policy" and section is False:
        return None
    if section is None:
        return {} if name in recipe else absent
    if not isinstance(section, dict):
        raise SepoError(f"section '{name}' is {redacted({name: section})[name]!r}; keys and values are expected.")
    return {str(key): value for key, value in section.items()}


def _steps_of(given: _Given, number: int, *, first: list[Step], before: Mapping[str, Any] | None) -> Iterator[Step]:
    """Derive the steps of a round.

    Args:
        given: the pipeline recipe.
        number: number of the round, from 1.
        first: the steps of the first round; empty for the first round itself.
        before: recipe of the policy of the round before, or None.
    """
    shared, sections, output = given.shared, given.sections, given.directory(number)
    trained = {name: value for name, value in shared.items() if sections[PAIRS] is None or name not in SAMPLING_KEYS}
    policy = {**trained, "stage": "sepo", "do_train": True, **(sections["policy"] or {})}
    policy["output_dir"] = f"{output}/policy"
    reference = {name: policy[name] for name in REFERENCE if name in policy}
    if before is not None:
        policy = _continuing(policy, before)
        if not reference.get("ref_model"):
            reference = reference_before(before)
    sampled, declares, sampling = None, None, sections[PAIRS]
    if sampling is not None:
        made = Step(PAIRS, pairs_recipe(shared, policy, sampling, reference=reference, output=output, number=number))
        yield made
        sampled = made.output
        declares = str(policy.get("dataset_dir") or "data") if policy.get("eval_dataset") else None
        policy = with_pairs(policy, output=output)
    derived: dict[str, Any] = {}
    if sections["oracle"] is not None:
        key = PIPELINE_KEYS["oracle_sample_ratio"]
        ratio = key.read(given.recipe.get(key.name, key.default))
        sample = {**_data_keys(policy), key.name: ratio, "output_dir": f"{output}/sample"}
        yield Step("sample", sample, pairs=sampled, declares=declares)
        sepo_keys = (*SEPO_KEYS, *registered_keys(with_stage_defaults(policy)))
        training = {name: value for name, value in trained.items() if name not in (*sepo_keys, *_EVALUATION)}
        base = _base(given, training, output, first=first, before=before)
        if base is not None and before is None:
            yield Step("base", dict(base))
        section = OracleSection.of(given.sections["oracle"])
        own = {name: shared[name] for name in _SHARED_BY_ORACLE if name in shared}
        oracles = trained_oracles(section, base, training, policy, output, in_own_stage=own)
        yield from (Step(name, recipe) for oracle in oracles for name, recipe in oracle.runs)
        derived = oracle_keys(section, oracles, base=base)
    if "oracle_base_model" in policy:
        derived.pop("oracle_base_model_revision", None)
    yield Step("policy", {**derived, **policy}, pairs=sampled, declares=declares)


def _continuing(policy: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe of a policy that starts from another policy; a reference is only set if it reads one."""
    start = continued(policy, before)
    derived = [name for name in start if name in REFERENCE]
    unread = derived if policy.get("ref_model") or not derived else unread_keys({**policy, **start}, derived)
    return {**policy, **{name: value for name, value in start.items() if name not in unread}}


def _base(
    given: _Given,
    training: Mapping[str, Any],
    output: str,
    *,
    first: list[Step],
    before: Mapping[str, Any] | None,
) -> Mapping[str, Any] | None:
    """Return the recipe of the run whose model the oracle of a round starts from, or None for a model as it is.

    In the first round it is the base. In later ones it is the policy of the round before if oracle and policy started
    from the same model, and the base of the first round if they did not (a small oracle for a large policy).
    """
    section = given.sections["base"]
    if before is None:
        return None if section is None else base_recipe(given.recipe, training, section, output)
    recipes = {step.name: step.recipe for step in first}
    start = recipes.get("base") or recipes["oracle"]
    same = all(start.get(name) == recipes["policy"].get(name) for name in _START)
    return before if same else recipes.get("base")


def _data_keys(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that determine the rows."""
    names = (
        "dataset", "dataset_dir", "eval_dataset", "val_size", "max_samples", "seed", "mix_strategy", "interleave_probs",
        "cache_dir", "media_dir",
    )  # fmt: skip
    return {name: recipe[name] for name in names if name in recipe}


def last_model(steps: list[Step]) -> dict[str, Any]:
    """Return the keys that name the model that the last step trains, adapters of earlier rounds included."""
    policy = steps[-1].recipe
    if not is_lora(policy):
        return {"model_name_or_path": policy["output_dir"]}
    return {"model_name_or_path": policy.get("model_name_or_path"), "adapter_name_or_path": trained_adapters(policy)}
