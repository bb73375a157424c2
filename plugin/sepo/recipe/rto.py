"""Recipes of stage `rto`: its keys, checked and resolved, and separated from those that the host parses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sepo.errors import SepoError, nearest
from sepo.recipe.given import Arguments, given_keys
from sepo.recipe.ignored_keys import WITHOUT_EFFECT, ignored_notes
from sepo.recipe.keys import (
    HOST_KEYS,
    KEYS,
    PAIRS_KEYS,
    REWARD_KEYS,
    RTO_KEYS,
    SEPO_KEYS,
    SepoArguments,
    keys_of,
    typed,
    unknown_key,
)
from sepo.recipe.model_specs import ModelSpec, OracleSpec
from sepo.recipe.oracle_keys import oracle_spec
from sepo.recipe.overview import Changed, Origin, Overview, origin_of
from sepo.recipe.reference import OWN_START, base_of_reference_adapters, reference_spec
from sepo.recipe.resolve import REFUSED, check_quantization, check_revisions, is_set, without_options
from sepo.recipe.response_rewards import RewardSettings, resolve_rewards
from sepo.recipe.stage_names import RTO


@dataclass(frozen=True)
class OnlineScorer:
    """A token scorer of sampled responses.

    Args:
        reads: the values that are scores: the ``oracle``'s log-ratios, the ``entropies`` of the sampling policy, or its
            negative log-probabilities (``surprise``).
        rewards: whether scores are rewards, so that the lowest are selected in responses that are worse than the mean
            of their group.
        ratio: default share of the tokens.
        meaning: the scores in words.
    """

    reads: Literal["oracle", "entropies", "surprise"]
    rewards: bool
    ratio: float
    meaning: str


ONLINE_SCORERS: Mapping[str, OnlineScorer] = {
    "oracle": OnlineScorer("oracle", True, 0.3, "the oracle's log-ratio (SePO)"),
    "entropy": OnlineScorer("entropies", False, 0.2, "the policy's entropy (arXiv 2506.01939)"),
    "confidence": OnlineScorer("surprise", False, 0.3, "the policy's -log π"),
}
"""Token scorers of stage `rto`, besides ``none``; the ratios are those of the papers."""


@dataclass(frozen=True)
class RtoSelection:
    """Selection of the tokens that carry gradient.

    Args:
        scorer: name in ``ONLINE_SCORERS``.
        ratio: share of each response's tokens, in (0, 1].
        rule: ``floor``, ``quantile`` or ``mean``; see ``select_tokens``.
    """

    scorer: str
    ratio: float
    rule: str = "floor"


@dataclass(frozen=True)
class RtoMethod:
    """Hyperparameters of RTO; each has a key of the same meaning, see ``RTO_KEYS``.

    Args:
        beta1: weight of the oracle's log-ratios in the rewards of tokens.
        beta2: weight of the policy's divergence from its reference there.
        oracle_clip: largest absolute value of the oracle's term, or None.
        samples: number of responses to a prompt.
        max_new_tokens: maximum number of tokens of a response.
        temperature: sampling temperature.
        top_p: probability of the tokens from which samples are drawn.
        scale: divisor of the advantages: ``group``, ``batch`` or ``none``.
        clip: PPO's epsilon.
        iterations: number of optimizer steps on each batch of responses.
        loss_type: divisor of the loss: ``dapo``, ``grpo``, ``bnpo`` or ``dr_grpo``.
        kl_beta: weight of GRPO's KL term in the loss.
        select: the selection; None if every token carries gradient.
        head_chunk_tokens: number of tokens whose logits are in memory at a time, or None for 64 MiB of logits.
    """

    beta1: float = RTO_KEYS["rto_beta1"].default
    beta2: float = RTO_KEYS["rto_beta2"].default
    oracle_clip: float | None = None
    samples: int = RTO_KEYS["rto_samples"].default
    max_new_tokens: int = RTO_KEYS["rto_max_new_tokens"].default
    temperature: float = RTO_KEYS["rto_temperature"].default
    top_p: float = RTO_KEYS["rto_top_p"].default
    scale: str = RTO_KEYS["rto_scale"].default
    clip: float = RTO_KEYS["rto_clip"].default
    iterations: int = RTO_KEYS["rto_iterations"].default
    loss_type: str = RTO_KEYS["rto_loss"].default
    kl_beta: float = RTO_KEYS["rto_kl_beta"].default
    select: RtoSelection | None = None
    head_chunk_tokens: int | None = None

    @property
    def needs_oracle(self) -> bool:
        """Whether the oracle scores sampled responses."""
        return bool(self.beta1) or (self.select is not None and self.select.scorer == "oracle")

    @property
    def needs_reference(self) -> bool:
        """Whether the reference runs on sampled responses."""
        return bool(self.beta2 or self.kl_beta)

    @property
    def needs_policy_pass(self) -> bool:
        """Whether the sampling policy runs once more, without gradient, on sampled responses."""
        return bool(self.beta2) or (self.select is not None and self.select.scorer != "oracle")


_FIELDS = {"rto_loss": "loss_type"}
"""Fields of ``RtoMethod`` that are not the name of their key without its prefix."""


@dataclass(frozen=True)
class RtoSettings:
    """Settings of a run of stage `rto`, in addition to the host's arguments.

    Args:
        stage: name in the recipe.
        rto: the method.
        rewards: how responses are judged.
        oracle: the oracle and its base, or None if none is used.
        ref_model: the reference if the recipe names one, or None.
        score_batch_tokens: padded tokens per scoring batch of the oracle.
        notes: lines of the first screen about keys.
        overview: what the recipe was resolved to, for the first screen.
    """

    stage: str
    rto: RtoMethod
    rewards: RewardSettings
    oracle: OracleSpec | None = None
    ref_model: ModelSpec | None = None
    score_batch_tokens: int = KEYS["score_batch_tokens"].default
    notes: tuple[str, ...] = ()
    overview: Overview | None = field(default=None, compare=False)

    @property
    def first_screen(self) -> str:
        """What the recipe was resolved to, and the notes."""
        return "" if self.overview is None else self.overview.text(self.notes)

    @property
    def models(self) -> list[tuple[str, ModelSpec]]:
        """Models that a run loads beside the policy, each with the recipe key that names it."""
        found = [] if self.ref_model is None else [("ref_model", self.ref_model)]
        if self.oracle is not None:
            found += [("oracle_model", self.oracle.oracle), ("oracle_base_model", self.oracle.base)]
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON values, for the run's ``output_dir``."""
        method = asdict(self.rto)
        select = method.pop("select")
        return {
            "stage": self.stage,
            "objective": RTO,
            "reference": self.rto.needs_reference,
            "hyperparameters": {name: value for name, value in method.items() if name != "head_chunk_tokens"},
            "token_scorer": "none" if select is None else select["scorer"],
            "select": None,  # of the responses of pairs
            "sampled_select": select,
            "oracle": None if self.oracle is None else self.oracle.as_dict(),
            "rewards": self.rewards.as_dict(),
        }


_READ = ("token_scorer", "select_ratio", "select_rule", "score_batch_tokens", "head_chunk_tokens")
_OF_PAIRS = ("pref_beta", "pref_loss", "pref_ftx", "simpo_gamma", "dpo_label_smoothing", "ld_alpha", "ref_precompute")
_OF_ORACLE_SETS = ("oracles", "oracle_checkpoints", "oracle_base_checkpoints", "oracle_scores")
_DECODING = {"max_new_tokens": "rto_max_new_tokens", "temperature": "rto_temperature", "top_p": "rto_top_p"}
_UNSUPPORTED = {
    **{name: reason for name, reason in REFUSED.items() if name in ("use_unsloth", "use_kt", "use_hyper_parallel")},
    **{
        name: f"nothing is packed, as responses are sampled; remove {name}"
        for name in ("packing", "neat_packing", "group_by_length")
    },
    "streaming": "TRL's sampler of prompts needs their number; remove streaming",
    "tokenized_path": "prompts are encoded when the run starts; remove tokenized_path, and set dataset",
    "train_on_prompt": "the loss is over sampled responses; remove train_on_prompt",
    "mask_history": "the loss is over sampled responses; remove mask_history",
    "label_smoothing_factor": "the loss has no labels; remove label_smoothing_factor",
    "moe_aux_loss_coef": "this stage has no router loss; remove moe_aux_loss_coef",
    "predict_with_generate": "evaluations sample in any case; remove predict_with_generate",
    "do_predict": "this stage makes no predictions; remove do_predict, and run sepo eval or sepo sample",
}
"""Host keys that stage `rto` does not support, and why."""


def resolve_rto(
    args: Arguments,
    *,
    host_keys: Iterable[str],
    allow_extra_keys: bool = False,
    origins: Mapping[str, str] | None = None,
) -> tuple[Arguments, RtoSettings]:
    """Split a recipe of stage `rto` into the arguments that the host parses and the settings resolved here.

    Args:
        args: the recipe as a mapping, or the words of a command line.
        host_keys: all keys of the host.
        allow_extra_keys: pass unknown keys on to the host (its ALLOW_EXTRA_ARGS).
        origins: where each key was set, in words; see ``origin_of``.

    Returns:
        The host's arguments, with ``stage: dpo``, and the frozen settings.

    Raises:
        SepoError: If a key is unknown, a value is outside its range, or keys contradict each other.
    """
    given = {name: value for name, value in given_keys(args).items() if value is not None}
    origin = origin_of(given, origins or {}, stage=RTO)
    _check_keys(given, host_keys=host_keys, allow_extra_keys=allow_extra_keys)
    check_quantization(given)
    arguments = typed({name: given[name] for name in SEPO_KEYS if name in given})
    check_revisions(arguments, given)
    rto = rto_method(given)
    _refuse_unread("reference", given, rto.needs_reference, "rto_beta2 and rto_kl_beta are 0")
    _refuse_unread("oracle", given, rto.needs_oracle, "rto_beta1 is 0 and token_scorer is not oracle")
    needed_by = f"stage {RTO} with " + (f"rto_beta1: {rto.beta1:g}" if rto.beta1 else "token_scorer: oracle")
    oracle = oracle_spec(arguments, reader=needed_by) if rto.needs_oracle else None
    rewards = resolve_rewards(given)
    base = base_of_reference_adapters(given)
    keys = {**given, **base}
    settings = RtoSettings(
        stage=RTO,
        rto=rto,
        rewards=rewards,
        oracle=oracle,
        ref_model=reference_spec(keys)[1] if keys.get("ref_model") else None,
        score_batch_tokens=arguments.score_batch_tokens,
        notes=ignored_notes([name for name, value in given.items() if is_set(value)], _NOTED),
        overview=_overview(given, rto, rewards, oracle, reference_spec(keys), origin=origin),
    )
    loss = "sigmoid" if rto.needs_reference else "simpo"  # the host's names of losses with and without a reference
    own = (*SEPO_KEYS, *RTO_KEYS, *REWARD_KEYS, *PAIRS_KEYS, "stage")
    if isinstance(args, dict):
        host: Arguments = {name: value for name, value in args.items() if name not in own}
        host |= {"stage": "dpo", "pref_loss": loss, **base}  # type: ignore[operator]
    else:
        more = [word for name, value in base.items() for word in (f"--{name}", str(value))]
        host = [*without_options(args, (*own, *base)), "--stage", "dpo", "--pref_loss", loss, *more]
    return host, settings


_NOTED = {
    **{name: reason for name, reason in WITHOUT_EFFECT.items() if name not in _UNSUPPORTED},
    **dict.fromkeys(PAIRS_KEYS, "sepo pairs reads it"),
}


def rto_method(given: Mapping[str, Any]) -> RtoMethod:
    """Return the hyperparameters that a recipe sets.

    Args:
        given: keys and values without null.

    Raises:
        SepoError: If a value is outside its range, or keys contradict each other.
    """
    read = {
        _FIELDS.get(name, name.removeprefix("rto_")): row.read(given[name])
        for name, row in RTO_KEYS.items()
        if name in given
    }
    if "oracle_clip" in read and not read.get("beta1", RtoMethod.beta1):
        raise SepoError("rto_oracle_clip is set, but rto_beta1 is 0; remove rto_oracle_clip.")
    arguments = typed({name: given[name] for name in _READ if name in given})
    return RtoMethod(**read, select=_selection(arguments), head_chunk_tokens=arguments.head_chunk_tokens)


def _selection(arguments: SepoArguments) -> RtoSelection | None:
    scorer = arguments.token_scorer or "none"
    if scorer == "none":
        for name in ("select_ratio", "select_rule"):
            if getattr(arguments, name) is not None:
                raise SepoError(
                    f"{name} is set, but token_scorer is none, so every token is selected; remove {name}, or set "
                    f"token_scorer: {' or '.join(ONLINE_SCORERS)}."
                )
        return None
    if scorer not in ONLINE_SCORERS:
        known = ("none", *ONLINE_SCORERS)
        raise SepoError(
            f"token_scorer is {scorer!r}, expected one of {', '.join(known)} in stage {RTO}, where responses are "
            f"sampled.{nearest(scorer, known)}"
        )
    ratio = ONLINE_SCORERS[scorer].ratio if arguments.select_ratio is None else arguments.select_ratio
    return RtoSelection(scorer, ratio, arguments.select_rule or "floor")


def _check_keys(given: Mapping[str, Any], *, host_keys: Iterable[str], allow_extra_keys: bool) -> None:
    oracle = (name for name in keys_of("oracle") if name not in _OF_ORACLE_SETS)
    read = (*_READ, *oracle, *keys_of("reference"), *RTO_KEYS, *REWARD_KEYS)
    known = (*host_keys, *HOST_KEYS, *read, *PAIRS_KEYS)
    for name, value in given.items():
        if name in _DECODING:
            raise SepoError(f"{name} is set, but stage {RTO} reads {_DECODING[name]}; set {_DECODING[name]}.")
        if name in _UNSUPPORTED and is_set(value):
            raise SepoError(f"{name} is set, but {_UNSUPPORTED[name]}.")
        if (name in SEPO_KEYS and name not in read) or name in _OF_PAIRS:
            raise SepoError(
                f"{name} is set, but it belongs to the stages that train on pairs, and stage {RTO} trains on sampled "
                f"responses; remove {name}."
            )
        if name not in known and not allow_extra_keys and name not in ("h", "help"):
            raise SepoError(unknown_key(name, known))
    evaluates = given.get("eval_strategy") not in (None, "no") or is_set(given.get("do_eval"))
    if evaluates and not (is_set(given.get("eval_dataset")) or is_set(given.get("val_size"))):
        name = "do_eval" if is_set(given.get("do_eval")) else "eval_strategy"
        raise SepoError(
            f"{name} is {given[name]}, but there is nothing to evaluate on; set eval_dataset or val_size, or remove "
            f"{name}."
        )


def _refuse_unread(part: Literal["oracle", "reference"], given: Mapping[str, Any], needed: bool, why: str) -> None:
    for name in keys_of(part):
        if not needed and is_set(given.get(name)):
            raise SepoError(f"{name} is set, but {why}, so no {part} is used; remove {name}.")


def _overview(
    given: Mapping[str, Any],
    rto: RtoMethod,
    rewards: RewardSettings,
    oracle: OracleSpec | None,
    reference: tuple[str, ModelSpec],
    *,
    origin: Origin,
) -> Overview:
    key, model = reference
    where = "the policy at its start" if key == OWN_START else f"{model.text}  ({origin(key)})"
    selected = "every token of the responses"
    if rto.select is not None:
        scorer = ONLINE_SCORERS[rto.select.scorer]
        side = "highest, or lowest in responses below the mean" if scorer.rewards else "highest"
        share = "above the mean" if rto.select.rule == "mean" else f"{rto.select.ratio:g} of the tokens"
        selected = f"{share} by {scorer.meaning}, {side}  ({origin('token_scorer')})"
    rows = (
        ("stage", RTO),
        ("responses", f"{rto.samples} to each prompt, up to {rto.max_new_tokens} tokens, temperature "
                      f"{rto.temperature:g}"),
        ("judge", rewards.text),
        ("token rewards", f"{rto.beta1:g} x log-ratio of the oracle - {rto.beta2:g} x log-ratio of the policy"),
        ("oracle", "none" if oracle is None else oracle.text),
        ("reference", where if rto.needs_reference else "none"),
        ("gradient", selected),
    )  # fmt: skip
    changed = tuple(
        Changed(name, value, row.default, origin(name))
        for name, row in RTO_KEYS.items()
        if name in given and (value := row.read(given[name])) != row.default
    )
    return Overview(RTO, rows, changed)
