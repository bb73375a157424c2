"""Resolution of this package's keys in a recipe: checked, and separated from the keys that the host parses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sepo.errors import SepoError, nearest
from sepo.objectives import NO_WEIGHT, Method, available_objectives, available_scorers, resolve_method
from sepo.objectives.method import SUM
from sepo.objectives.presets import BUILT_IN, find_objective, find_weight
from sepo.objectives.resolve import declared_settings, weight_setting
from sepo.objectives.settings import Setting
from sepo.recipe.given import Arguments, given_keys
from sepo.recipe.ignored_keys import ignored_notes
from sepo.recipe.keys import (
    HOST_KEYS,
    KEYS,
    RTO_KEYS,
    SAMPLING_KEYS,
    SEPO_KEYS,
    SepoArguments,
    hyperparameter_keys,
    keys_of,
    typed,
    unknown_key,
)
from sepo.recipe.model_specs import OracleSet
from sepo.recipe.objective_sums import objective_names, objective_of
from sepo.recipe.oracle_keys import oracle_set
from sepo.recipe.overview import Changed, Origin, Overview, origin_of, resolved_rows
from sepo.recipe.reference import (
    OWN_START,
    PrecomputedReference,
    base_of_reference_adapters,
    precomputed_reference,
    reference_notes,
    reference_spec,
)
from sepo.recipe.settings import RunSettings, TokenRewardSource
from sepo.recipe.stage_names import RTO
from sepo.recipe.stages import (
    owner_of_key,
    read_setting,
    registered_keys,
    registered_parts,
    selection_parts,
    with_stage_defaults,
)
from sepo.recipe.token_rewards import CONTRASTIVE, reward_notes, token_reward_source, treg_hyperparameters

STEP_IN_BACKWARD = (
    "lomo", "adalomo", "galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise",
    "apollo_adamw_layerwise",
)  # fmt: skip
"""Optimizers that update the weights during the backward pass, and therefore allow one backward pass per step."""

REFUSED = {
    "pref_bco_weight": "the BCO term belongs to the host's DPO; remove pref_bco_weight or use stage: dpo",
    "use_unsloth": "Unsloth replaces the forward pass in which sepo's stages replace the head; remove use_unsloth",
    "use_kt": "KTransformers replaces the forward pass in which sepo's stages replace the head; remove use_kt",
    "streaming": "scores are joined to the data by row number, and a stream has no row numbers; remove streaming",
    "neat_packing": "pairs are not packed, and their padding is not computed in any case; remove neat_packing",
    "train_on_prompt": "preference losses are over responses; remove train_on_prompt",
    "mask_history": "only the last turn of a pair is trained on in any case; remove mask_history",
    "predict_with_generate": "evaluations generate no text; remove predict_with_generate, and run sepo eval",
    "label_smoothing_factor": "it smooths the labels of tokens, and the loss is over pairs; set dpo_label_smoothing "
    "with objective: dpo or robust_dpo",
    **{
        name: f"it replaces the loss of SFT, and the key objective sets the loss; remove {name}"
        for name in ("use_dft_loss", "use_asft_loss", "use_eaft_loss")
    },
    "use_hyper_parallel": "the host has this engine for SFT only; remove use_hyper_parallel",
}
"""Host keys that no sepo stage supports, and why."""


def without_options(words: Sequence[str], names: Iterable[str]) -> list[str]:
    """Return the command line without the named options and their values."""
    dropped, kept, skip = set(names), [], False
    for position, word in enumerate(words):
        if skip:
            skip = False
            continue
        name, equals, _ = word[2:].partition("=") if word.startswith("--") else ("", "", "")
        if name.replace("-", "_") in dropped:
            following = words[position + 1] if position + 1 < len(words) else "--"
            skip = not equals and not following.startswith("--")
            continue
        kept.append(word)
    return kept


def _ratios(arguments: SepoArguments) -> dict[str, float]:
    separate = {"chosen": arguments.chosen_select_ratio, "rejected": arguments.rejected_select_ratio}
    ratios = {}
    for side, ratio in separate.items():
        if ratio is not None and arguments.select_ratio is not None:
            raise SepoError(
                f"select_ratio and {side}_select_ratio are both set; set select_ratio for both sides, or "
                "chosen_select_ratio and rejected_select_ratio."
            )
        value = arguments.select_ratio if ratio is None else ratio
        if value is not None:
            ratios[f"{side}_ratio"] = value
    return ratios


def _oracles(arguments: SepoArguments, method: Method) -> OracleSet:
    selecting = f"objective {method.name} with token_scorer: oracle"
    return oracle_set(arguments, reader=selecting if method.scorer == "oracle" else "treg_rewards: oracle")


def check_revisions(arguments: SepoArguments, given: Mapping[str, Any]) -> None:
    """Raise if the revision of a model is set, but not the model.

    Args:
        arguments: the keys of this package.
        given: the recipe's keys and values.

    Raises:
        SepoError: If there is such a key.
    """
    for name in SEPO_KEYS:
        model = name.removesuffix("_revision")
        if model != name and getattr(arguments, name) is not None and not given.get(model):
            raise SepoError(f"{name} is set, but {model} is not; set {model}, or remove {name}.")


def is_set(value: Any) -> bool:
    """Return whether a key of the host is set to a value other than its off value."""
    return value not in (None, False, 0, 0.0, "", "false", "False", "0", "0.0")


def resolve(
    args: Arguments,
    *,
    host_keys: Iterable[str],
    allow_extra_keys: bool = False,
    origins: Mapping[str, str] | None = None,
) -> tuple[Arguments, RunSettings]:
    """Split a recipe of a sepo stage into the arguments that the host parses and the settings resolved here.

    Args:
        args: the recipe as a mapping, or the words of a command line (``--stage sepo ...``).
        host_keys: all keys of the host.
        allow_extra_keys: pass unknown keys on to the host (its ALLOW_EXTRA_ARGS).
        origins: where each key was set, in words, for the first screen; see ``origin_of``.

    Returns:
        The host's arguments, with ``stage: dpo`` in place of the sepo stage, and the frozen settings.

    Raises:
        SepoError: If a key is unknown, a value is outside its range, or keys contradict each other.
    """
    recipe = given_keys(args)
    given = with_stage_defaults(recipe)
    stage = str(given["stage"])
    origin = origin_of(recipe, origins or {}, stage=stage)
    taken = (*host_keys, *HOST_KEYS, *SEPO_KEYS, *SAMPLING_KEYS)  # a version of the host may lack a key of another one
    own_keys = registered_keys(given, taken=taken)
    _check_names(given, known=(*taken, *own_keys), allow_extra_keys=allow_extra_keys, stage=stage)
    arguments = typed({name: given[name] for name in SEPO_KEYS if name in given})
    _check_batch_tokens(arguments, given)
    check_quantization(given)
    check_revisions(arguments, given)
    method, changed, notes = resolved_method(stage, arguments, given, own_keys=own_keys, origin=origin)
    prompts = method.needs_token_rewards or method.scorer == CONTRASTIVE
    for name in keys_of("reference"):
        if not method.needs_reference and is_set(given.get(name)):
            raise SepoError(
                f"{name} is set, but objective {method.name} trains without a reference model; remove {name}"
                + (" (treg_eval_model names the model that gives token rewards)." if prompts else ".")
            )
    base = base_of_reference_adapters(given)
    if base:
        given = {**given, **base}
        notes = (
            *notes,
            f"the reference is {base['ref_model']} with ref_model_adapters: {given['ref_model_adapters']}.",
        )
    reference = precomputed_reference(arguments, given, method)
    rewards = token_reward_source(arguments, given, method)
    needs_oracle = _needs_oracle(method, rewards)
    if not needs_oracle:
        for name in keys_of("oracle"):
            if name in given:
                raise SepoError(
                    f"{name} is set, but no oracle is used: token_scorer is {method.scorer}. Remove {name}, or set "
                    "token_scorer: oracle (to select tokens) or treg_rewards: oracle (for T-REG's token rewards)."
                )
    oracles = _oracles(arguments, method) if needs_oracle else None
    _check_credit_data(arguments, method, rewards)
    _check_best_metric(given, method)
    settings = RunSettings(
        stage=stage,
        method=method,
        oracles=oracles,
        token_scores_dir=arguments.token_scores_dir,
        score_batch_tokens=arguments.score_batch_tokens,
        head_chunk_tokens=arguments.head_chunk_tokens,
        kept_activations_mb=arguments.kept_activations_mb,
        batch_tokens=arguments.batch_tokens,
        router_loss_weight=_weight(given, "moe_aux_loss_coef"),
        notes=(
            *notes,
            *ignored_notes([name for name, value in given.items() if is_set(value)]),
            *reference_notes(reference, method),
            *reward_notes(stage, rewards),
        ),
        token_rewards=rewards,
        precomputed_reference=reference,
        ref_model=reference_spec(given)[1] if given.get("ref_model") and reference is None else None,
        credit_data=arguments.credit_data,
        overview=Overview(
            method.name,
            resolved_rows(
                method,
                stage=stage,
                origin=origin,
                own_scorer=arguments.token_scorer is None,
                reference=_reference_in_words(
                    given,
                    method,
                    reference,
                    origin=origin("ref_model" if recipe.get("ref_model") else "ref_model_adapters"),
                ),
                oracle=None if oracles is None else oracles.text,
            ),
            changed,
        ),
    )
    # With `simpo` the host treats the run as one without a reference (no second model, PiSSA allowed).
    loss = "sigmoid" if settings.runs_reference else "simpo"
    dropped = (*SEPO_KEYS, *SAMPLING_KEYS, *own_keys, "stage", "pref_loss", "dpo_label_smoothing", "ld_alpha")
    if isinstance(args, dict):
        host: Arguments = {name: value for name, value in args.items() if name not in dropped}
        host |= {"stage": "dpo", "pref_loss": loss, **base}  # type: ignore[operator]
    else:
        more = [word for name, value in base.items() for word in (f"--{name}", str(value))]
        host = [*without_options(args, (*dropped, *base)), "--stage", "dpo", "--pref_loss", loss, *more]
    return host, settings


def unread_keys(recipe: Mapping[str, Any], names: Iterable[str]) -> tuple[str, ...]:
    """Return the keys of an oracle, a reference, a selection or a stored scorer that a run would refuse as unused.

    Args:
        recipe: keys and values of a sepo stage.
        names: the keys that are looked at, such as those that several recipes share.

    Raises:
        SepoError: as ``resolve``, for the other keys.
    """
    parts: dict[str, set[str]] = {
        part: set(keys_of(part)) & set(names) for part in ("selection", "oracle", "reference")
    }
    parts["reference"] |= {"ref_precompute"} & set(names)
    parts["stored scorer"] = {"credit_data"} & set(names)
    given = with_stage_defaults(
        {name: value for name, value in recipe.items() if not any(name in part for part in parts.values())}
    )
    arguments = typed({name: given[name] for name in SEPO_KEYS if name in given})
    own_keys = registered_keys(given)
    method, _, _ = resolved_method(str(given["stage"]), arguments, given, own_keys=own_keys)
    rewards = token_reward_source(arguments, given, method)
    read = {
        "selection": method.scorer != "none",
        "oracle": _needs_oracle(method, rewards),
        "reference": method.needs_reference,
        "stored scorer": _has_stored_scorer(method, rewards),
    }
    unread = set().union(*(parts[part] for part, needed in read.items() if not needed))
    return tuple(name for name in recipe if name in unread)


def _needs_oracle(method: Method, rewards: TokenRewardSource | None) -> bool:
    return method.scorer == "oracle" or (rewards is not None and rewards.origin == "oracle")


def _has_stored_scorer(method: Method, rewards: TokenRewardSource | None) -> bool:
    """Return whether a scorer runs over the rows before training."""
    return method.scorer == "oracle" or rewards is not None or method.token_scorer.from_batch is not None


def _check_credit_data(arguments: SepoArguments, method: Method, rewards: TokenRewardSource | None) -> None:
    """Raise if rows with marked errors are named, but no scorer runs before training that could score them."""
    if arguments.credit_data is not None and not _has_stored_scorer(method, rewards):
        raise SepoError(
            f"credit_data is {arguments.credit_data}, but token_scorer is {method.scorer}, which scores no rows before "
            "training; use token_scorer: oracle, contrastive or a registered one with a store, or remove credit_data "
            "and run sepo credit."
        )


def _check_best_metric(given: Mapping[str, Any], method: Method) -> None:
    """Raise if the best checkpoint is chosen by a metric of an oracle, and evaluations of the method have none.

    The trainer would raise after the first evaluation.
    """
    metric = str(given.get("metric_for_best_model") or "").removeprefix("eval_")
    if metric.startswith("oracle/") and not method.compares_all_tokens:
        raise SepoError(
            f"metric_for_best_model is {metric}, but evaluations of objective {method.name} with token_scorer "
            f"{method.scorer} do not log it: it needs the log-ratios of all tokens to a reference. Use objective: dpo, "
            "or another metric (rewards/accuracies, loss)."
        )


def _reference_in_words(
    given: Mapping[str, Any], method: Method, precomputed: PrecomputedReference | None, *, origin: str
) -> str:
    if not method.needs_reference:
        return "none"
    key, model = reference_spec(given)
    where = "the policy at its start" if key == OWN_START else f"{model.text}  ({origin})"
    return where if precomputed is None else f"{where}, run before training (ref_precompute)"


def _check_batch_tokens(arguments: SepoArguments, given: Mapping[str, Any]) -> None:
    """Raise if a batch may be split, hence run several backward passes, and the optimizer updates weights in each."""
    in_backward = [name for name in ("galore_layerwise", "apollo_layerwise") if is_set(given.get(name))]
    if given.get("optim") in STEP_IN_BACKWARD:
        in_backward.append("optim")
    if arguments.batch_tokens is not None and in_backward:
        raise SepoError(
            f"batch_tokens is {arguments.batch_tokens} and {in_backward[0]} is {given[in_backward[0]]}, which updates "
            "the weights during each backward pass, but a split batch has several: remove batch_tokens."
        )


def _check_names(given: Mapping[str, Any], *, known: Sequence[str], allow_extra_keys: bool, stage: str) -> None:
    for name in given:
        if name not in known and not allow_extra_keys and name not in ("h", "help"):
            owner = owner_of_key(name)
            if owner is not None and not _used(owner, given):
                kind, part = owner
                raise SepoError(
                    f"{name} is set, but it belongs to {kind.replace('_', ' ')} {part} and the "
                    f"{kind.replace('_', ' ')} is {given.get(kind) or NO_WEIGHT}; set {kind}: {part}, or remove {name}."
                )
            if name in RTO_KEYS:
                raise SepoError(f"{name} is set, but it belongs to stage {RTO}; set stage: {RTO}, or remove {name}.")
            raise SepoError(unknown_key(name, known))
    loss = given.get("pref_loss")
    if loss not in (None, "sigmoid"):
        named = f"set objective: {loss}" if loss in available_objectives() else "use stage: dpo"
        raise SepoError(
            f"pref_loss is {loss!r}, but in stage {stage} the key objective sets the loss; remove pref_loss (only "
            f"sigmoid is accepted) and {named}."
        )
    for name, reason in REFUSED.items():
        if is_set(given.get(name)):
            raise SepoError(f"{name} is set, but {reason}.")


def _used(owner: tuple[str, str], given: Mapping[str, Any]) -> bool:
    kind, name = owner
    return name in (objective_names(str(given["objective"])) if kind == "objective" else (given.get(kind),))


def check_quantization(given: Mapping[str, Any]) -> None:
    """Raise for combinations that the host refuses only after it has loaded the model.

    Raises:
        SepoError: If weights would be quantized and trained.
    """
    bits = given.get("quantization_bit")
    if bits is None:
        return
    if is_set(given.get("use_dora")):
        raise SepoError(
            f"use_dora is set and quantization_bit is {bits}, but the host does not support both; remove one of them."
        )
    kind = given.get("finetuning_type", "lora")
    if kind not in ("lora", "oft"):
        raise SepoError(
            f"finetuning_type is {kind} and quantization_bit is {bits}, but quantized weights cannot be trained; set "
            "finetuning_type: lora, or remove quantization_bit."
        )


def resolved_method(
    stage: str,
    arguments: SepoArguments,
    given: Mapping[str, Any],
    *,
    own_keys: Mapping[str, tuple[str, Setting]],
    origin: Origin = str,
) -> tuple[Method, tuple[Changed, ...], tuple[str, ...]]:
    """Return the resolved method, the hyperparameters that differ from its defaults, and notes about other keys.

    Args:
        stage: the recipe's stage.
        arguments: the keys of this package.
        given: all keys and values, including the stage's defaults (``with_stage_defaults``).
        own_keys: the keys of registered parts (``registered_keys``).
        origin: where a key was set.

    Raises:
        SepoError: If the objective or scorer is unknown, or a value is outside its range.
    """
    objective, parts = objective_of(str(arguments.objective)), objective_names(str(arguments.objective))
    known, scorers = available_objectives(), available_scorers()
    for name in parts:
        if name not in known:
            raise SepoError(f"objective is {name!r}, expected one of {', '.join(known)}.{nearest(name, known)}")
    named = {"token_scorer": arguments.token_scorer, "token_weight": arguments.token_weight}
    hyperparameters: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    scorer, weight = selection_parts(given)
    if scorer not in scorers:
        raise SepoError(f"token_scorer is {scorer!r}, expected one of {', '.join(scorers)}.{nearest(scorer, scorers)}")
    find_weight(weight)
    keys: dict[str, str] = {}
    notes = []
    for key, row in {**HOST_KEYS, **KEYS}.items():
        if row.sets is None or given.get(key) is None:
            continue
        found = [hyperparameter for name in parts if (hyperparameter := _hyperparameter(key, name, parts)) is not None]
        for hyperparameter in found:
            hyperparameters[hyperparameter], keys[hyperparameter] = row.read(given[key]), key
        if not found and key in KEYS:
            raise SepoError(f"{key} is set, but objective {SUM.join(parts)} has no such term; remove {key}.")
        if not found:
            notes.append(f"{key} is set, but objective {SUM.join(parts)} does not use it.")
    for key, (hyperparameter, _) in own_keys.items():
        if given.get(key) is not None:
            hyperparameters[hyperparameter], keys[hyperparameter] = given[key], key
    weighing = _weight_hyperparameters(given, objective, weight, origin=origin)
    hyperparameters |= {name: value for name, (value, _) in weighing.items()}
    keys |= {name: key for name, (_, key) in weighing.items()}
    selection = _selection(arguments, scorer)
    hyperparameters |= selection
    keys |= {name: _key_of_selection(name, arguments) for name in selection}
    treg = treg_hyperparameters(arguments, objective, parts, stage=stage)
    hyperparameters |= treg
    keys |= {name: "treg_weighting" if name.endswith("weighting") else "treg_alpha" for name in treg}
    registered = registered_parts(stage=stage, objectives=parts, token_scorer=scorer, token_weight=weight)
    notes += [f"registered by another package: {item}." for item in registered]
    declared = declared_settings(objective, token_scorer=scorer, token_weight=weight)
    for name, key in keys.items():
        if name in declared:  # others are refused below
            hyperparameters[name] = read_setting(key, declared[name], hyperparameters[name])
    method = resolve_method(objective, **hyperparameters)
    values = method.hyperparameters
    changed = [
        Changed(name, values[name], declared[name].default, origin(key))
        for name, key in keys.items()
        if values[name] != declared[name].default
    ]
    for key in ("pref_ftx", "moe_aux_loss_coef"):  # terms of the trainer's, not of the method
        if _weight(given, key):
            changed.append(Changed(key, _weight(given, key), 0.0, origin(key)))
    return method, tuple(changed), tuple(notes)


def _weight(given: Mapping[str, Any], key: str) -> float:
    """Return the value of a host's key for the weight of a term in the loss, 0 if it is absent."""
    return 0.0 if given.get(key) is None else float(HOST_KEYS[key].read(given[key]))


def _hyperparameter(key: str, objective: str, parts: Sequence[str]) -> str | None:
    """Return the hyperparameter of ``resolve_method`` that a key sets for one objective, or None."""
    name = hyperparameter_keys(objective).get(key)
    if name is None or name not in find_objective(objective).settings:
        return None
    return name if len(parts) == 1 else f"{objective}.{name}"


def _weight_hyperparameters(
    given: Mapping[str, Any], objective: str | dict[str, float], weight: str, *, origin: Origin
) -> dict[str, tuple[Any, str]]:
    """Return the values of the keys of the token weight by hyperparameter, each with its key.

    Raises:
        SepoError: If a key of another token weight is set.
    """
    found = {}
    for key, row in {**HOST_KEYS, **KEYS}.items():
        if row.weighs is None or given.get(key) is None:
            continue
        if row.weighs[0] != weight:
            owners = [f"objective: {name}" for name in BUILT_IN if find_objective(name).weight == row.weighs[0]]
            raise SepoError(
                f"{origin(key)} is set, but it belongs to token_weight {row.weighs[0]}, and token_weight is {weight}; "
                f"set {' or '.join([*owners, f'token_weight: {row.weighs[0]}'])}, or remove it."
            )
        found[weight_setting(objective, *row.weighs)] = (row.read(given[key]), key)
    return found


def _key_of_selection(name: str, arguments: SepoArguments) -> str:
    side, _, what = name.rpartition("_")
    if what == "ratio":
        own = f"{side}_select_ratio"
        return "select_ratio" if getattr(arguments, own) is None else own
    return f"select_{name}"


def _selection(arguments: SepoArguments, scorer: str) -> dict[str, Any]:
    if scorer == "none":
        for name in keys_of("selection"):
            if getattr(arguments, name) is not None:
                raise SepoError(
                    f"{name} is set, but token_scorer is none, so every token is selected; remove {name}, or set "
                    "token_scorer: oracle or policy_ref."
                )
    others = {
        "rule": arguments.select_rule,
        "unit": arguments.select_unit,
        "scope": arguments.select_scope,
        "count": arguments.select_count,
        "span_tokens": arguments.select_span_tokens,
    }
    return {**_ratios(arguments), **{name: value for name, value in others.items() if value is not None}}
