"""Recipe keys that this package reads: one row per key, the single source of all that is derived from them.

A row has the name, type, default, range and help of a key, the hyperparameter that it sets and the part of a run that
it belongs to. Parsing, validation, ``docs/keys.md``, LLaMA Board and Axolotl's block are derived from these rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_type_hints

from sepo.errors import SepoError, nearest
from sepo.forward.sequences import DEFAULT_BATCH_TOKENS
from sepo.objectives.presets import BUILT_IN, find_objective
from sepo.objectives.token_weights import WEIGHTS
from sepo.recipe.objective_sums import objective_text
from sepo.recipe.oracle_lists import oracles_text
from sepo.recipe.oracle_stop import DEFAULT_STOP, read_stop
from sepo.selection.estimators import ORACLE_SCORES
from sepo.selection.scopes import SCOPES
from sepo.selection.select import COUNTS, RULES
from sepo.selection.units import UNITS


@dataclass(frozen=True)
class Expected:
    """Requirement on the value of a key, in addition to its type.

    Args:
        words: the requirement in words, for the error.
        holds: function that returns whether a value of the key's type meets it.
    """

    words: str
    holds: Callable[[Any], bool]


def one_of(*options: Any, join: str = ", ") -> Expected:
    """Return the requirement that a value is one of ``options``."""
    words = join.join(map(str, options))
    return Expected(words if join != ", " else f"one of {words}", lambda value: value in options)


SHARE = Expected("a share in (0, 1] (0.3 for 30 %)", lambda value: 0.0 < value <= 1.0)
WEIGHT = Expected("a finite number of at least 0", lambda value: 0.0 <= value < math.inf)
POSITIVE = Expected("a positive number", lambda value: 0.0 < value < math.inf)
AT_LEAST_0 = Expected("a whole number of at least 0", lambda value: value >= 0)
AT_LEAST_1 = Expected("a whole number of at least 1", lambda value: value >= 1)
BITS = one_of(4, 8, join=" or ")


@dataclass(frozen=True)
class Hyperparameter:
    """Hyperparameter of an objective that a key sets.

    Args:
        name: name of the hyperparameter.
        objectives: objectives that have it under this key; None for all that have it.
    """

    name: str
    objectives: tuple[str, ...] | None = None


Part = Literal["selection", "oracle", "reference"]
"""Part of a run; its keys are refused in a run without it."""


@dataclass(frozen=True)
class Key:
    """Row of one recipe key.

    Args:
        name: name in a recipe.
        kind: type of its values.
        help: description, one sentence or more.
        default: value if the key is absent.
        shown: the default in words if it is not the value of ``default``, or the hyperparameter whose defaults apply.
        expected: requirement on the value, or None.
        sets: hyperparameter that it sets, or None.
        part: part of a run that it belongs to, or None.
        weighs: token weight and its setting that it sets, or None.
        reads: converts a value from YAML or a command line, given the key's name; None to convert to ``kind``.
    """

    name: str
    kind: type
    help: str
    default: Any = None
    shown: str | Hyperparameter = ""
    expected: Expected | None = None
    sets: Hyperparameter | None = None
    part: Part | None = None
    weighs: tuple[str, str] | None = None
    reads: Callable[[str, Any], Any] | None = None

    @property
    def default_text(self) -> str:
        """Default for the documentation: in words, by objective for a hyperparameter, or the value."""
        if self.weighs is not None:
            weight, setting = self.weighs
            return _as_text(WEIGHTS[weight].settings[setting].default)
        shown = self.shown or self.sets
        if shown:
            return shown if isinstance(shown, str) else _defaults_of(shown)
        return "" if self.default is None else _as_text(self.default)

    def read(self, value: Any) -> Any:
        """Convert a value from YAML or a command line to the key's type.

        Raises:
            SepoError: If it is not of the key's type, or outside its range.
        """
        if self.reads is not None:
            return self.reads(self.name, value)
        if self.kind is bool:
            return as_flag(self.name, value)
        value = as_number(self.name, value, self.kind) if self.kind in (int, float) else as_text(self.name, value)
        if self.expected is not None and not self.expected.holds(value):
            raise SepoError(f"{self.name} is {value!r}, expected {self.expected.words}.")
        return value


def _defaults_of(sets: Hyperparameter) -> str:
    """Return the defaults of a hyperparameter: the most common one, then the objectives with another."""
    defaults: dict[Any, list[str]] = {}
    for name in sets.objectives or BUILT_IN:
        settings = find_objective(name).settings
        if sets.name in settings:
            defaults.setdefault(settings[sets.name].default, []).append(name)
    (first, _), *rest = sorted(defaults.items(), key=lambda item: -len(item[1]))
    others = ", ".join(f"`{name}` {_as_text(value)}" for value, names in rest for name in names)
    return f"{_as_text(first)}{f' ({others})' if others else ''}"


def _as_text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _key(
    meaning: str,
    *,
    default: Any = None,
    shown: str | Hyperparameter = "",
    expected: Expected | None = None,
    sets: Hyperparameter | None = None,
    part: Part | None = None,
    weighs: tuple[str, str] | None = None,
    reads: Callable[[str, Any], Any] | None = None,
) -> Any:
    """Return a dataclass field for a row; the row takes name and type from the field."""
    row: dict[str, Any] = {"help": meaning, "shown": shown, "expected": expected, "sets": sets, "part": part}
    row |= {"weighs": weighs, "reads": reads}
    return field(default=default, metadata=row)


def _of_revision(key: str) -> str:
    """Return the help of the key for the revision of the models that another key names."""
    several = "; one for all, or one for each, as a list or separated by commas" if "adapters" in key else ""
    return f"Branch, tag or commit of `{key}` on the hub{several}; ignored for local directories."


def _revision(key: str, *, part: Part | None = None, shown: str = "`main`") -> Any:
    """Return the field for the revision of the models that another key names."""
    return _key(_of_revision(key), shown=shown, part=part)


def options_by_name(key: str, value: Any) -> dict[str, str]:
    """Convert a mapping of options from YAML, or its JSON from a command line, to texts by name.

    Raises:
        SepoError: If it is not a mapping of names to single values.
    """
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        found = value
    if not isinstance(found, Mapping) or any(isinstance(each, Mapping | list) for each in found.values()):
        raise SepoError(f"{key} is {value!r}; name: value is expected.")
    return {str(name): scalar_text(each) for name, each in found.items()}


def scalar_text(value: Any) -> str:
    """Return a single value of a recipe as YAML writes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class SepoArguments:
    """Keys that this package adds to a recipe."""

    objective: str | None = _key(
        "The objective (reward, penalty and link), in any sepo stage: one of the table below, or a registered one; or "
        "a sum of objectives over one selection, `{dpo: 0.8, orpo: 0.2}`, with `sft` for the likelihood of the chosen "
        "response.",
        shown="the stage's",
        reads=objective_text,
    )
    token_scorer: str | None = _key(
        "The scorer that selects tokens, for any objective: `oracle`; `policy_ref` (live, Selective-DPO); "
        "`contrastive` (T-REG's token rewards); `confidence` (live, the tokens that the policy finds least likely; no "
        "reference); `probability` (the same tokens, scored by -π; ConfPO); "
        "`file` (columns of the data set); `random` (ablation, by `seed`); `none`; or a registered one.",
        shown="the objective's",
    )
    token_weight: str | None = _key(
        "The weight of each selected token in sums and means, for any objective: `position` (decay with the position, "
        "D2PO); `length` (less after the length of the shorter response, LD-DPO); `reward` (1 ± α β u, u the score of "
        "the token, TGDPO); `importance` (the score, clamped and scaled, TIS-DPO); `critical` (1 - score on "
        "rejected tokens, cDPO); `scores` (the scores themselves); `transport` (resemblance to the tokens of the other "
        "response, by optimal transport between hidden states, OTPO); `none`; or a registered one. With a weight that "
        "reads scores, all tokens are selected unless a ratio is set.",
        shown="the objective's",
    )
    d2po_decay: float | None = _key(
        "Token weight `position` (`d2po`): token t of a response, from 1, weighs decay^t.", weighs=("position", "decay")
    )
    tgdpo_alpha: float | None = _key(
        "Token weight `reward` (`tgdpo`): α in 1 + α β u (chosen) and 1 - α β u (rejected).",
        weighs=("reward", "alpha"),
    )
    tis_clip: float | None = _key(
        "Token weight `importance` (`tis_dpo`): scores are clamped to ± this.", weighs=("importance", "clip")
    )
    tis_low: float | None = _key(
        "Token weight `importance`: the weight of the lowest score (chosen) or the highest (rejected).",
        weighs=("importance", "low"),
    )
    tis_high: float | None = _key(
        "Token weight `importance`: the weight of the highest score (chosen) or the lowest (rejected).",
        weighs=("importance", "high"),
    )
    otpo_reg: float | None = _key(
        "Token weight `transport` (`otpo`): entropic regularization, at least 0.001; the costs are in [0, 1], and a "
        "larger value makes the weights more even. The authors have 1 for 8B and 0.1 for 3B models.",
        weighs=("transport", "reg"),
    )
    otpo_reg_m: float | None = _key(
        "Token weight `transport`: penalty on marginals other than 1; a larger value makes the weights more even.",
        weighs=("transport", "reg_m"),
    )
    sepo_gamma: float | None = _key(
        "Scale of SePO's rewards (γ in Eq. 26; the authors' code has 1).", sets=Hyperparameter("gamma", ("sepo",))
    )
    dpop_lambda: float | None = _key(
        "`dpop`: weight of the penalty on a decreasing likelihood of the chosen response.",
        sets=Hyperparameter("dpop_lambda", ("dpop",)),
    )
    tdpo_alpha: float | None = _key(
        "`tdpo2`: weight of the KL terms, α in the paper.", sets=Hyperparameter("alpha", ("tdpo2",))
    )
    rrhf_sft_weight: float | None = _key(
        "`rrhf`: weight of the likelihood term.", sets=Hyperparameter("sft_weight", ("rrhf",))
    )
    ipo_average: bool | None = _key(
        "`ipo`: use mean (true) or summed (false) log-ratios.", sets=Hyperparameter("average", ("ipo",))
    )
    select_ratio: float | None = _key(
        "Share of tokens selected in both responses, in (0, 1].",
        shown="0.3 (`selective_dpo` 0.4); 1 with a token weight that reads scores",
        expected=SHARE,
        part="selection",
    )
    select_rule: str | None = _key(
        "`floor`: max(1, ⌊ratio x length⌋) tokens; `quantile`: all tokens at or beyond that quantile, including ties "
        "(the Selective-DPO authors' rule); `mean`: all tokens with a score above the response's mean, or below it "
        "where the lowest scores are selected (ConfPO; a pair in which a response has none has loss 0).",
        shown="`floor` (`confpo` mean)",
        expected=one_of(*RULES),
        part="selection",
    )
    select_count: str | None = _key(
        "The number of tokens that `floor` selects: `ratio`, the share, or `shorter`, in both responses of a pair as "
        "many as the shorter one has (SamPO).",
        shown="`ratio` (`sampo` shorter)",
        expected=one_of(*COUNTS),
        part="selection",
    )
    select_unit: str | None = _key(
        "The unit of selection. `token`: single tokens; `span`: runs of at least `select_span_tokens`, grown around "
        "the best tokens; `step`: lines and sentences by their mean score, until the share is reached.",
        shown="`token`",
        expected=one_of(*UNITS),
        part="selection",
    )
    select_span_tokens: int | None = _key(
        "Minimum length of a span with `select_unit: span`.", shown="3", expected=AT_LEAST_1, part="selection"
    )
    select_scope: str | None = _key(
        "The tokens that the share refers to: those of each `response`; of the `pair` (its best tokens, at least one "
        "of each response); of the `dataset` (one threshold over the training set, at least one token per response; "
        "not for live scorers).",
        shown="`response`",
        expected=one_of(*SCOPES),
        part="selection",
    )
    chosen_select_ratio: float | None = _key(
        "Share of tokens selected in chosen responses (highest scores).",
        shown="`select_ratio`",
        expected=SHARE,
        part="selection",
    )
    rejected_select_ratio: float | None = _key(
        "Share of tokens selected in rejected responses (lowest scores).",
        shown="`select_ratio`",
        expected=SHARE,
        part="selection",
    )
    oracle_model: str | None = _key(
        "The oracle: a full model trained with DPO, as local directory or hub name; with any tokenizer.", part="oracle"
    )
    oracle_model_adapters: str | None = _key(
        "LoRA adapters of the oracle, applied to `oracle_model`, or to `oracle_base_model` if that is not set; a list "
        "or separated by commas, applied in order.",
        part="oracle",
    )
    oracle_base_model: str | None = _key(
        "The model that the oracle was trained from, with the oracle's tokenizer; or one trained on exchanged pairs.",
        shown="`oracle_model`",
        part="oracle",
    )
    oracle_base_model_adapters: str | None = _key(
        "Adapters of the oracle's base (e.g. its SFT adapter).", part="oracle"
    )
    oracle_model_quantization_bit: int | None = _key(
        "4 or 8: load the scoring models with bitsandbytes.", expected=BITS, part="oracle"
    )
    oracle_model_revision: str | None = _revision("oracle_model", part="oracle")
    oracle_model_adapters_revision: str | None = _revision("oracle_model_adapters", part="oracle")
    oracle_base_model_revision: str | None = _revision("oracle_base_model", part="oracle")
    oracle_base_model_adapters_revision: str | None = _revision("oracle_base_model_adapters", part="oracle")
    oracles: str | None = _key(
        "Several oracles, whose scores are averaged: a list with the `oracle_*` keys of models, adapters and revisions "
        "of each (`[{oracle_model_adapters: a}, {oracle_model_adapters: b}]`); keys that all share are set beside it.",
        shown="the one that the other keys name",
        part="oracle",
        reads=oracles_text,
    )
    oracle_checkpoints: int | None = _key(
        "Average the scores over this number of checkpoints of the oracle's training, the last ones in its directory "
        "(`checkpoint-STEP`), in place of the model at its end.",
        shown="none",
        expected=AT_LEAST_1,
        part="oracle",
    )
    oracle_base_checkpoints: bool | None = _key(
        "Compare each of `oracle_checkpoints` with the checkpoint of the same step of the base, which was trained "
        "beside the oracle (on exchanged pairs, on rejected responses), in place of the model at its end.",
        shown="false",
        part="oracle",
    )
    oracle_scores: str | None = _key(
        "The scores that are made of log π_oracle - log π_base: `ratio`, as it is; `centered`, without what the base "
        "expects at its position (plus KL(base ‖ oracle)); `step_mean`, the mean of the token's line or sentence; "
        "`first_error`, in rejected responses, less with every token after the first strongly negative one.",
        shown="`ratio`",
        expected=one_of(*ORACLE_SCORES),
        part="oracle",
    )
    treg_alpha: float | None = _key(
        "Weight of T-REG's regularizer, in any objective; 0 disables it.",
        shown="0.25 in stage `treg` and for `dpo_reg`, `simpo_reg`; otherwise 0",
        expected=Expected("a number of at least 0 (0 disables the regularizer)", lambda value: 0 <= value < math.inf),
    )
    treg_weighting: str | None = _key(
        "Weight of each pair's regularizer. `sequence`: the slope of the pair's preference loss (Eq. 2); `static`: 1.",
        shown="`sequence`",
        expected=one_of("sequence", "static"),
    )
    treg_rewards: str | None = _key(
        "Token rewards from contrastive `prompts`, or from the `oracle`: σ(log π_oracle - log π_base) - 0.5.",
        shown="`prompts`",
        expected=one_of("prompts", "oracle"),
    )
    treg_eval_model: str | None = _key(
        "Full model that scores tokens after the contrastive prompts, with the policy's tokenizer.",
        shown="the reference at its start",
    )
    treg_eval_model_revision: str | None = _revision("treg_eval_model")
    ref_model_revision: str | None = _revision("ref_model", part="reference", shown="`model_revision`")
    ref_model_adapters_revision: str | None = _revision(
        "ref_model_adapters", part="reference", shown="`model_revision`"
    )
    ref_precompute: bool = _key(
        "Compute the reference's log-probabilities before training, and load no second model during training.",
        default=False,
    )
    credit_data: str | None = _key(
        "Rows with marked errors, on which the run's stored scores are measured before training (AUROC): a JSON file "
        "of ranking rows with `rejected_error_spans`, `obvious` or `fluent` (built-in), or `NAME=PATH` of a public "
        "data set (`sepo credit --list`).",
        shown="none",
    )
    token_scores_dir: str | None = _key(
        "Directory of the score stores; also set by `SEPO_TOKEN_SCORES_DIR`.",
        shown="`sepo/token_scores` in the Hugging Face cache",
    )
    score_batch_tokens: int = _key(
        "Padded tokens per scoring batch.", default=DEFAULT_BATCH_TOKENS, expected=AT_LEAST_1
    )
    batch_tokens: int | None = _key(
        "Maximum number of tokens in one forward pass of the policy: a larger device batch is split into parts of "
        "whole pairs, each with its own backward pass; the loss remains the mean over the pairs of the batch.",
        shown="no limit",
        expected=AT_LEAST_1,
    )
    head_chunk_tokens: int | None = _key(
        "Number of tokens whose logits are in memory at a time.", shown="64 MiB of logits", expected=AT_LEAST_1
    )
    kept_activations_mb: int | None = _key(
        "Megabytes (10^6 bytes, per process) of products and attention outputs that gradient checkpointing keeps from "
        "the forward pass instead of computing them again in the backward pass; 0 for none, which needs the least "
        "memory. Results do not change. Automatic: what the free memory allows (at most half of it), as long as the "
        "tensors of a step stay below the size of the float32 logits of its padded batch.",
        shown="automatic",
        expected=AT_LEAST_0,
    )


def _rows() -> Iterable[Key]:
    types = get_type_hints(SepoArguments)
    for item in fields(SepoArguments):
        kinds = [kind for kind in get_args(types[item.name]) or (types[item.name],) if kind is not type(None)]
        yield Key(item.name, kinds[0], default=item.default, **item.metadata)


KEYS = {row.name: row for row in _rows()}
"""Rows of the keys that this package adds, by name."""

SEPO_KEYS = tuple(KEYS)

HOST_KEYS = {
    row.name: row
    for row in (
        Key(
            "pref_beta",
            float,
            "β of every objective that has one (table below).",
            shown="the objective's",
            sets=Hyperparameter("beta"),
        ),
        Key(
            "simpo_gamma",
            float,
            "SimPO's margin, for `simpo`, `simpo_reg` and `confpo`.",
            sets=Hyperparameter("gamma", ("simpo", "simpo_reg", "confpo")),
        ),
        Key(
            "dpo_label_smoothing",
            float,
            "Label smoothing of `dpo` and `robust_dpo`.",
            sets=Hyperparameter("label_smoothing", ("dpo", "robust_dpo")),
        ),
        Key(
            "pref_ftx",
            float,
            "Weight of the mean negative log-likelihood over all chosen tokens, added to any objective.",
            shown="0",
        ),
        Key(
            "ld_alpha",
            float,
            "Token weight `length` (`ld_dpo`): the weight, in [0, 1], of tokens after the length of the pair's shorter "
            "response, for policy and reference alike.",
            weighs=("length", "alpha"),
        ),
        Key(
            "moe_aux_loss_coef",
            float,
            "Weight of the load-balancing loss of a mixture of experts: the model's own, over the tokens of each pair, "
            "averaged over pairs.",
            shown="0",
            expected=WEIGHT,
        ),
        Key("ref_model", str, "The reference, a full model.", shown="the policy at its start", part="reference"),
        Key("ref_model_adapters", str, "LoRA adapters of the reference, applied to `ref_model`.", part="reference"),
        Key(
            "ref_model_quantization_bit",
            int,
            "4 or 8: load the reference with bitsandbytes.",
            expected=BITS,
            part="reference",
        ),
    )
}
"""Keys of LLaMA-Factory that the stages read with the host's meaning; Axolotl's block has them as well."""

RTO_KEYS = {
    row.name: row
    for row in (
        Key(
            "rto_samples",
            int,
            "Number of responses that are sampled for each prompt, at least 2; their rewards are compared.",
            default=8,
            expected=Expected("a whole number of at least 2", lambda value: value >= 2),
        ),
        Key(
            "rto_beta1",
            float,
            "Weight of the oracle's log-ratio log π_dpo - log π_ref in the reward of each token (β1); 0 for none.",
            default=0.05,
            expected=WEIGHT,
        ),
        Key(
            "rto_beta2",
            float,
            "Weight of the divergence log π - log π_ref that the reward of each token loses (β2); 0 for none.",
            default=0.01,
            expected=WEIGHT,
        ),
        Key(
            "rto_oracle_clip",
            float,
            "Largest absolute value of the oracle's term in the reward of a token (the authors' code has 0.05).",
            shown="no limit",
            expected=POSITIVE,
        ),
        Key(
            "rto_max_new_tokens",
            int,
            "Maximum number of tokens of a response, its end of turn included.",
            default=256,
            expected=AT_LEAST_1,
        ),
        Key("rto_temperature", float, "Sampling temperature, above 0.", default=1.0, expected=POSITIVE),
        Key(
            "rto_top_p",
            float,
            "Samples are drawn from the smallest set of tokens with at least this probability, in (0, 1].",
            default=1.0,
            expected=SHARE,
        ),
        Key(
            "rto_scale",
            str,
            "Divisor of the advantages, a standard deviation of the returns: over the responses of a `group`, over the "
            "`batch`, or `none` (TRL's `scale_rewards`). With `group`, token rewards weigh most where the judge's are "
            "equal.",
            default="batch",
            expected=one_of("group", "batch", "none"),
        ),
        Key(
            "rto_clip",
            float,
            "PPO's ε: a ratio π / π_sampling outside of 1 ± ε has no further gradient; it differs from 1 with "
            "`rto_iterations` above 1.",
            default=0.2,
            expected=POSITIVE,
        ),
        Key(
            "rto_iterations",
            int,
            "Number of optimizer steps on each batch of responses (TRL's `num_iterations`).",
            default=1,
            expected=AT_LEAST_1,
        ),
        Key(
            "rto_loss",
            str,
            "Divisor of the loss (TRL's `loss_type`). `dapo`: the tokens of the optimizer step; `grpo`: the tokens of "
            "each response, then responses; `bnpo`: the tokens of a device batch; `dr_grpo`: `rto_max_new_tokens`.",
            default="dapo",
            expected=one_of("dapo", "grpo", "bnpo", "dr_grpo"),
        ),
        Key(
            "rto_kl_beta",
            float,
            "Weight of GRPO's KL term in the loss (TRL's `beta`), in addition to `rto_beta2` in the rewards.",
            default=0.0,
            expected=WEIGHT,
        ),
    )
}
"""Keys of stage `rto`, in addition to those of the judge, the oracle, the reference and the selection."""

PIPELINE_KEYS = {
    row.name: row
    for row in (
        Key(
            "oracle_sample_ratio",
            float,
            "Share of the pairs that base and oracle are trained on, sampled with `seed`, in (0, 1].",
            default=1.0,
            expected=SHARE,
        ),
        Key("base_dataset", str, "SFT data set for the base.", shown="the chosen responses"),
        Key("base_dataset_dir", str, "`dataset_dir` of `base_dataset`.", shown="`dataset_dir`"),
        Key(
            "rounds",
            int,
            "Number of rounds with the section `pairs`: each samples pairs from the policy of the round before, and "
            "trains oracle and policy from it. A larger number continues after the finished rounds.",
            default=1,
            expected=AT_LEAST_1,
        ),
    )
}
"""Keys of `sepo pipeline`, in addition to its sections ``pairs``, ``base``, ``oracle`` and ``policy``."""

ORACLE_KEYS = {
    row.name: row
    for row in (
        Key(
            "oracle.kind",
            str,
            "Key of the section `oracle`: how the two models are trained whose log-probabilities are compared. `dpo`, "
            "`ipo`, `minor_dpo`: the oracle by that objective, and its base (score log π_oracle - log π_base); "
            "`reversed`: the oracle by DPO, and a second model on the same pairs with chosen and rejected exchanged; "
            "`sft_contrast`: one by SFT on the chosen responses, and one by SFT on the rejected ones.",
            default="dpo",
            expected=one_of("dpo", "ipo", "minor_dpo", "reversed", "sft_contrast"),
        ),
        Key(
            "oracle.seeds",
            str,
            "Key of the section `oracle`: a list of seeds, with one training of the oracle each; the mean of their "
            "scores is used (`oracles`).",
            shown="`seed`",
            reads=lambda name, value: seeds_of(name, value),
        ),
        Key(
            "oracle.stop",
            str,
            "Key of the section `oracle`: early stopping by a metric of held-out pairs, a tenth of its pairs unless "
            "`val_size` or `eval_dataset` is set in the section. They are evaluated after every tenth of the steps, "
            "the best checkpoint is kept, and training ends after three evaluations without improvement: `loss`, "
            "`accuracy`, `margin` (`rewards/*`), `margin_per_size`, `margin_per_drift`, `separation`, `lowest_token`, "
            "`concentration` (`oracle/*`); `true` is `margin_per_size`, `never` trains all steps.",
            default=DEFAULT_STOP,
            reads=read_stop,
        ),
        Key(
            "oracle.checkpoints",
            int,
            "Key of the section `oracle`: the mean of the scores of this number of checkpoints is used, evenly spaced "
            "over the second half of the training (`oracle_checkpoints`).",
            shown="none: the model at the end",
            expected=Expected("a whole number of at least 2", lambda value: value >= 2),
        ),
    )
}
"""Keys of the section ``oracle`` of `sepo pipeline` and `sepo compare` that are not keys of its training."""

JUDGE_KEYS = {
    row.name: row
    for row in (
        Key(
            "judge",
            str,
            "How responses are judged, as `--judge` of `sepo eval`: `exact`, `contains`, `regex`, `math`, or a "
            "registered judge.",
            shown="none",
        ),
        Key("expected_column", str, "Column of the rows with the expected answers, for a verifier.", shown="none"),
        Key("judge_options", dict, "Options of the verifier, `name: value`.", shown="none", reads=options_by_name),
    )
}
"""Keys of the verifiers, which compare a response with the expected answer of its row."""

REWARD_KEYS = {
    **JUDGE_KEYS,
    **{
        row.name: row
        for row in (
            Key(
                "judge",
                str,
                "The reward of a sampled response: 1 or 0 by a verifier, as `--judge` of `sepo eval` (`exact`, "
                "`contains`, `regex`, `math`, or a registered one); `reward_model`, the score of `judge_model`; or "
                "`policy`, DPO's implicit reward without its β: log π - log π_ref, summed over the response, of the "
                "recipe's model and its reference.",
                shown="none",
            ),
            Key(
                "judge_model",
                str,
                "The reward model of `judge: reward_model`, as local directory or hub name: a sequence classification "
                "model with one output, or one whose output has a `score` (ArmoRM); or the model below a value head of "
                "the stage `rm`. It reads conversations in its own chat template.",
            ),
            Key(
                "judge_model_adapters",
                str,
                "LoRA adapters of `judge_model`, those of the stage `rm` with their value head among them; a list or "
                "separated by commas, applied in order.",
            ),
            Key(
                "judge_model_quantization_bit",
                int,
                "4 or 8: load `judge_model` with bitsandbytes.",
                expected=BITS,
            ),
            *(
                Key(f"{name}_revision", str, _of_revision(name), shown="`main`")
                for name in ("judge_model", "judge_model_adapters")
            ),
        )
    },
}
"""Keys that say how sampled responses are judged, wherever a number for each response is needed."""

PAIRS_KEYS = {
    row.name: row
    for row in (
        Key(
            "pairs_samples",
            int,
            "Number of responses that are sampled for each prompt, at least 2.",
            default=5,
            expected=Expected("a whole number of at least 2", lambda value: value >= 2),
        ),
        Key(
            "pairs_temperature",
            float,
            "Sampling temperature, above 0.",
            default=0.8,
            expected=Expected("a positive number", lambda value: 0.0 < value < math.inf),
        ),
        Key(
            "pairs_top_p",
            float,
            "Samples are drawn from the smallest set of tokens with at least this probability, in (0, 1].",
            default=1.0,
            expected=SHARE,
        ),
        Key(
            "pairs_max_new_tokens",
            int,
            "Maximum number of tokens of a response, its end of turn included; a response that reaches it is "
            "truncated, and never chosen.",
            default=512,
            expected=AT_LEAST_1,
        ),
        Key(
            "pairs_engine",
            str,
            "What samples: `transformers`, or `vllm`, in one process on a CUDA GPU.",
            shown="`vllm` if it is installed and can sample the model, else `transformers`",
            expected=one_of("transformers", "vllm", join=" or "),
        ),
        Key(
            "pairs_prompts",
            str,
            "Files with prompts, a list or separated by commas: JSON lines with `prompt` or `messages`, or the "
            "question files of `sepo eval`.",
            shown="the prompts of `dataset`",
        ),
        Key(
            "pairs_dir",
            str,
            "Directory of the pairs; as `dataset_dir` it has the data set `pairs`.",
            default="pairs_output",
        ),
        Key(
            "pairs_seed",
            int,
            "Seed of the samples.",
            shown="`seed`",
            expected=Expected("a whole number of at least 0", lambda value: value >= 0),
        ),
        Key(
            "pairs_min_margin",
            float,
            "Minimum difference of the rewards of chosen and rejected response; equal rewards are ties in any case.",
            default=0.0,
            expected=WEIGHT,
        ),
        Key(
            "pairs_batch_tokens",
            int,
            "Tokens of a batch of samples, padding and new tokens included. Rounding depends on the batches, so "
            "another value can change samples.",
            default=16384,
            expected=AT_LEAST_1,
        ),
    )
}
"""Keys of `sepo pairs`, in addition to ``REWARD_KEYS``."""

SAMPLING_KEYS = (*PAIRS_KEYS, *REWARD_KEYS)
"""Keys of sampled and judged responses, which training on pairs does not read."""

COMPARE_KEYS = {
    row.name: row
    for row in (
        Key("seeds", str, "Seeds of every variant, one run each.", shown="`[seed]`"),
        Key("baseline", str, "Variant that the others are compared with.", shown="the first"),
        Key(
            "choose",
            str,
            "Keys of a grid; for each variant, the values that are best on the validation rows are reported.",
            shown="none",
        ),
        Key(
            "choose_by",
            str,
            "Measure of that choice: `accuracy` of the log-ratio, or the share that is `right`.",
            shown="`right` with a judge, else `accuracy`",
            expected=one_of("accuracy", "right"),
        ),
        Key(
            "validation_dataset",
            str,
            "Pairs to choose by; or `val_size`, which splits them off `dataset`.",
            shown="none",
        ),
        Key(
            "generate",
            int,
            "Number of prompts of the held-out pairs that every policy answers.",
            default=0,
            expected=Expected("a whole number of at least 0", lambda value: value >= 0),
        ),
        Key(
            "reference_measures",
            bool,
            "Also measure what needs the reference: KL, and accuracy and margin of the log-ratio; half of the time.",
            default=True,
        ),
        *JUDGE_KEYS.values(),
    )
}
"""Keys of `sepo compare`, in addition to its sections ``variants`` and ``grid``."""


def keys_of(part: Part) -> tuple[str, ...]:
    """Return the keys that belong to a part of a run."""
    return tuple(name for name, row in {**KEYS, **HOST_KEYS}.items() if row.part == part)


def hyperparameter_keys(objective: str) -> dict[str, str]:
    """Return the keys whose row sets a hyperparameter of an objective.

    Returns:
        Hyperparameter by key. Keys of the selection and of T-REG set several hyperparameters or depend on the stage,
        and are not included.
    """
    rows = {**HOST_KEYS, **KEYS}
    return {
        name: row.sets.name
        for name, row in rows.items()
        if row.sets is not None and (row.sets.objectives is None or objective in row.sets.objectives)
    }


def unknown_key(name: str, known: Iterable[str]) -> str:
    """Return the message for a key that no part of a recipe has, with the nearest known name."""
    return f"unknown key '{name}'.{nearest(name, tuple(known))}"


def as_number(name: str, value: Any, kind: type[int] | type[float]) -> Any:
    """Convert a value from YAML or a command line to a number.

    Raises:
        SepoError: If it is not a number, or not a whole number for ``int``.
    """
    what = "a whole number" if kind is int else "a number"
    if isinstance(value, bool) or (kind is int and isinstance(value, float) and not value.is_integer()):
        raise SepoError(f"{name} is {value!r}, expected {what}.")
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise SepoError(f"{name} is {value!r}, expected {what}.") from None


def seeds_of(name: str, value: Any) -> tuple[int, ...]:
    """Return the seeds of a list from YAML or a command line.

    >>> seeds_of("seeds", [1, "2"]), seeds_of("seeds", 3), seeds_of("seeds", "4,5")
    ((1, 2), (3,), (4, 5))

    Raises:
        SepoError: If an item is no whole number, there is none, or one is repeated.
    """
    seeds = tuple(as_number(name, item, int) for item in (value if isinstance(value, list) else str(value).split(",")))
    if not seeds or len(set(seeds)) < len(seeds):
        raise SepoError(f"{name} is {value!r}, expected a list of different whole numbers.")
    return seeds


def as_text(name: str, value: Any) -> str:
    """Convert a value from YAML or a command line to text; items of a list are separated by commas.

    Raises:
        SepoError: If it is a mapping, or a list with anything but texts and numbers.
    """
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, Mapping | list) for item in items):
        raise SepoError(f"{name} is {value!r}, expected a text, or a list of texts.")
    return ",".join(map(str, items))


def as_flag(name: str, value: Any) -> bool:
    """Convert a value from YAML or a command line to a bool.

    Raises:
        SepoError: If it is neither true nor false.
    """
    words = {"true": True, "false": False}
    if str(value).lower() not in words:
        raise SepoError(f"{name} is {value!r}, expected true or false.")
    return words[str(value).lower()]


def names_of(value: Any) -> tuple[str, ...]:
    """Split names from YAML or a command line: a list, or one string separated by commas.

    >>> names_of("a, b"), names_of(["a", "b "]), names_of(None)
    (('a', 'b'), ('a', 'b'), ())
    """
    parts = value if isinstance(value, list) else str(value or "").split(",")
    return tuple(str(part).strip() for part in parts if str(part).strip())


def typed(given: Mapping[str, Any]) -> SepoArguments:
    """Convert the values of this package's keys to their types; a key that is set to null counts as absent.

    Raises:
        SepoError: If a value is not of its key's type, or outside its range.
    """
    return SepoArguments(**{name: KEYS[name].read(value) for name, value in given.items() if value is not None})
