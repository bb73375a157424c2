"""The keys of a recipe that this package reads: one row each, from which everything else about them is made.

A row has the name, type, default, range and help of a key, the hyperparameter that it sets and the part of a run that
it belongs to. Parsing, refusals, ``docs/keys.md``, LLaMA Board and Axolotl's block read these rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_type_hints

from sepo.errors import SepoError
from sepo.forward.sequences import DEFAULT_BATCH_TOKENS
from sepo.objectives.presets import BUILT_IN, find_objective
from sepo.selection.budgets import SCOPES
from sepo.selection.select import RULES
from sepo.selection.units import UNITS


@dataclass(frozen=True)
class Expected:
    """What the value of a key must be, beside its type.

    Args:
        words: the expectation, for the error.
        holds: whether a value of the key's type meets it.
    """

    words: str
    holds: Callable[[Any], bool]


def one_of(*options: Any, join: str = ", ") -> Expected:
    """Expect one of a few values."""
    words = join.join(map(str, options))
    return Expected(words if join != ", " else f"one of {words}", lambda value: value in options)


SHARE = Expected("a share in (0, 1] (0.3 for 30 %)", lambda value: 0.0 < value <= 1.0)
AT_LEAST_1 = Expected("a whole number of at least 1", lambda value: value >= 1)
BITS = one_of(4, 8, join=" or ")


@dataclass(frozen=True)
class Hyperparameter:
    """What a key sets in an objective.

    Args:
        name: of the hyperparameter.
        objectives: those that have it under this key; None: all that have it.
    """

    name: str
    objectives: tuple[str, ...] | None = None


Part = Literal["selection", "oracle", "reference"]
"""A part of a run; keys that belong to one are refused in a run without it."""


@dataclass(frozen=True)
class Key:
    """One row.

    Args:
        name: as in a recipe.
        kind: type of its values.
        help: its meaning, a sentence or more.
        default: the value of an absent key.
        shown: the default in words, if the value does not tell it, or the hyperparameter whose defaults it has.
        expected: the range, or None.
        sets: the hyperparameter that it sets, or None.
        part: the part of a run that it belongs to, or None.
    """

    name: str
    kind: type
    help: str
    default: Any = None
    shown: str | Hyperparameter = ""
    expected: Expected | None = None
    sets: Hyperparameter | None = None
    part: Part | None = None

    @property
    def default_text(self) -> str:
        """The default as documentation shows it: in words, by objective if objectives have it, or the value."""
        shown = self.shown or self.sets
        if shown:
            return shown if isinstance(shown, str) else _defaults_of(shown)
        return "" if self.default is None else _as_text(self.default)

    def read(self, value: Any) -> Any:
        """Return a value as YAML or a command line may give it, with its type.

        Raises:
            SepoError: it is not of the key's type, or outside its range.
        """
        if self.kind is bool:
            return as_flag(self.name, value)
        if self.kind in (int, float):
            value = as_number(self.name, value, self.kind)
        else:
            value = ",".join(value) if isinstance(value, list) else str(value)
        if self.expected is not None and not self.expected.holds(value):
            raise SepoError(f"{self.name} is {value!r}; {self.expected.words} is expected.")
        return value


def _defaults_of(sets: Hyperparameter) -> str:
    """Defaults of a hyperparameter: the most common one, then objectives with another."""
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
) -> Any:
    """A row whose name and type are those of its field."""
    row = {"help": meaning, "shown": shown, "expected": expected, "sets": sets, "part": part}
    return field(default=default, metadata=row)


@dataclass(frozen=True)
class SepoArguments:
    """The keys that this package adds to a recipe."""

    objective: str | None = _key(
        "The objective: reward, penalty and link, in any of our stages. Those of the table below, or your own.",
        shown="the stage's own",
    )
    token_scorer: str | None = _key(
        "What selects tokens, for any objective: `oracle`; `policy_ref` (live, Selective-DPO); `contrastive` (T-REG's "
        "token rewards); `confidence` (live, what the policy expects least; no reference); `file` (your own); `random` "
        "(the ablation, by `seed`); `none`; or your own.",
        shown="the objective's own",
    )
    sepo_gamma: float | None = _key(
        "Scale of SePO's rewards (γ in Eq. 26; the authors' code has 1).", sets=Hyperparameter("gamma", ("sepo",))
    )
    dpop_lambda: float | None = _key(
        "`dpop`: weight of the penalty on a falling chosen answer.", sets=Hyperparameter("dpop_lambda", ("dpop",))
    )
    tdpo_alpha: float | None = _key(
        "`tdpo2`: weight of its KL terms, α in its paper.", sets=Hyperparameter("alpha", ("tdpo2",))
    )
    rrhf_sft_weight: float | None = _key(
        "`rrhf`: weight of its likelihood term.", sets=Hyperparameter("sft_weight", ("rrhf",))
    )
    ipo_average: bool | None = _key(
        "`ipo`: over mean (true) or summed log-ratios.", sets=Hyperparameter("average", ("ipo",))
    )
    select_ratio: float | None = _key(
        "Share of tokens selected in both answers, in (0, 1].",
        shown=Hyperparameter("chosen_ratio"),
        expected=SHARE,
        part="selection",
    )
    select_rule: str | None = _key(
        "`floor`: max(1, ⌊ratio x length⌋) tokens; `quantile`: all from that quantile on, ties included (the "
        "Selective-DPO authors' rule).",
        shown="`floor`",
        expected=one_of(*RULES),
        part="selection",
    )
    select_unit: str | None = _key(
        "What is selected as a whole. `span`: runs of at least `select_span_tokens`, grown around the best tokens; "
        "`step`: lines and sentences by their mean score, until the share is reached.",
        shown="`token`",
        expected=one_of(*UNITS),
        part="selection",
    )
    select_span_tokens: int | None = _key(
        "Length of the shortest span of `select_unit: span`.", shown="3", expected=AT_LEAST_1, part="selection"
    )
    select_scope: str | None = _key(
        "What the share is a share of: each `response`'s tokens; the `pair`'s (its best tokens, at least one of each "
        "answer); the `dataset`'s (one threshold over the training set, at least one token per answer; not for live "
        "scorers).",
        shown="`response`",
        expected=one_of(*SCOPES),
        part="selection",
    )
    chosen_select_ratio: float | None = _key(
        "Share of tokens selected in chosen answers (highest scores).",
        shown="`select_ratio`",
        expected=SHARE,
        part="selection",
    )
    rejected_select_ratio: float | None = _key(
        "Share of tokens selected in rejected answers (lowest scores).",
        shown="`select_ratio`",
        expected=SHARE,
        part="selection",
    )
    oracle_model: str | None = _key("Full model trained with DPO, folder or hub name; any tokenizer.", part="oracle")
    oracle_model_adapters: str | None = _key(
        "LoRA adapters of the oracle, over `oracle_model` or else over `oracle_base_model`; a list or with commas, "
        "applied in order.",
        part="oracle",
    )
    oracle_base_model: str | None = _key(
        "What the oracle was trained from, with the oracle's tokenizer.", shown="`oracle_model`", part="oracle"
    )
    oracle_base_model_adapters: str | None = _key(
        "Adapters of the oracle's base (its SFT adapter, say).", part="oracle"
    )
    oracle_model_quantization_bit: int | None = _key(
        "4 or 8: load the scoring models with bitsandbytes.", expected=BITS, part="oracle"
    )
    treg_alpha: float | None = _key(
        "Weight of T-REG's regularizer, in any objective; 0 is none.",
        shown="0.25 in stage `treg` and for `dpo_reg`, `simpo_reg`; else 0",
        expected=Expected("a number of at least 0 (0 is no regularizer)", lambda value: 0 <= value < math.inf),
    )
    treg_weighting: str | None = _key(
        "`sequence`: the regularizer pulls as hard as the pair's preference does (Eq. 2); `static`: with weight 1.",
        shown="`sequence`",
        expected=one_of("sequence", "static"),
    )
    treg_rewards: str | None = _key(
        "Token rewards from contrastive `prompts`, or from the `oracle`: σ(log π_oracle - log π_base) - 0.5.",
        shown="`prompts`",
        expected=one_of("prompts", "oracle"),
    )
    treg_eval_model: str | None = _key(
        "Full model that is prompted for token rewards, with the policy's tokenizer.",
        shown="the reference at its start",
    )
    ref_precompute: bool = _key(
        "Compute the reference's log-probabilities before training and load no second model.", default=False
    )
    token_scores_dir: str | None = _key(
        "Where score stores are kept; `SEPO_TOKEN_SCORES_DIR` sets it too.",
        shown="`sepo/token_scores` in the Hugging Face cache",
    )
    score_batch_tokens: int = _key(
        "Padded tokens per scoring batch.", default=DEFAULT_BATCH_TOKENS, expected=AT_LEAST_1
    )
    batch_tokens: int | None = _key(
        "Most tokens that go through the policy at once: a larger device batch is split into parts of whole pairs, "
        "each with its own backward pass; the loss stays the mean over its pairs.",
        shown="no limit",
        expected=AT_LEAST_1,
    )
    head_chunk_tokens: int | None = _key(
        "Tokens whose logits exist at a time.", shown="64 MiB of logits", expected=AT_LEAST_1
    )


def _rows() -> Iterable[Key]:
    types = get_type_hints(SepoArguments)
    for item in fields(SepoArguments):
        kinds = [kind for kind in get_args(types[item.name]) or (types[item.name],) if kind is not type(None)]
        yield Key(item.name, kinds[0], default=item.default, **item.metadata)


KEYS = {row.name: row for row in _rows()}
"""The rows of the keys that this package adds, by name."""

OUR_KEYS = tuple(KEYS)

HOST_KEYS = {
    row.name: row
    for row in (
        Key(
            "pref_beta",
            float,
            "β of every objective that has one (table below).",
            shown="the objective's own",
            sets=Hyperparameter("beta"),
        ),
        Key(
            "simpo_gamma",
            float,
            "SimPO's margin, for `simpo` and `simpo_reg`.",
            sets=Hyperparameter("gamma", ("simpo", "simpo_reg")),
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
            "Weight of the mean negative log-likelihood over all chosen tokens, beside any objective.",
            shown="0",
        ),
        Key("ref_model", str, "The reference, a full model.", shown="the policy at its start", part="reference"),
        Key("ref_model_adapters", str, "LoRA adapters of the reference, over `ref_model`.", part="reference"),
        Key(
            "ref_model_quantization_bit",
            int,
            "4 or 8: load the reference with bitsandbytes.",
            expected=BITS,
            part="reference",
        ),
    )
}
"""Keys of LLaMA-Factory that the stages read with the host's meaning; Axolotl's block has them too."""

PIPELINE_KEYS = {
    row.name: row
    for row in (
        Key(
            "oracle_sample_ratio",
            float,
            "Share of the pairs for base and oracle, drawn with `seed`, in (0, 1].",
            default=1.0,
            expected=SHARE,
        ),
        Key("base_dataset", str, "An SFT data set for the base.", shown="the chosen responses"),
        Key("base_dataset_dir", str, "Its `dataset_dir`.", shown="`dataset_dir`"),
    )
}
"""Keys of `sepo pipeline`, beside its sections ``base``, ``oracle`` and ``policy``."""


def keys_of(part: Part) -> tuple[str, ...]:
    """The keys that belong to a part of a run."""
    return tuple(name for name, row in {**KEYS, **HOST_KEYS}.items() if row.part == part)


def hyperparameter_keys(objective: str) -> dict[str, str]:
    """The keys that set a hyperparameter of an objective by a row.

    Returns:
        Hyperparameter by key. Keys of the selection and of T-REG set several or depend on the stage, and are not here.
    """
    rows = {**HOST_KEYS, **KEYS}
    return {
        name: row.sets.name
        for name, row in rows.items()
        if row.sets is not None and (row.sets.objectives is None or objective in row.sets.objectives)
    }


def as_number(name: str, value: Any, kind: type[int] | type[float]) -> Any:
    """Read a number as YAML or a command line may give it.

    Raises:
        SepoError: it is none, or not a whole one where one is needed.
    """
    what = "a whole number" if kind is int else "a number"
    if isinstance(value, bool) or (kind is int and isinstance(value, float) and not value.is_integer()):
        raise SepoError(f"{name} is {value!r}; {what} is expected.")
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise SepoError(f"{name} is {value!r}; {what} is expected.") from None


def as_flag(name: str, value: Any) -> bool:
    """Read true or false as YAML or a command line may give it.

    Raises:
        SepoError: it is neither.
    """
    words = {"true": True, "false": False}
    if str(value).lower() not in words:
        raise SepoError(f"{name} is {value!r}; true or false is expected.")
    return words[str(value).lower()]


def names_of(value: Any) -> tuple[str, ...]:
    """Read names as YAML or a command line may give them: a list, or one text with commas.

    >>> names_of("a, b"), names_of(["a", "b "]), names_of(None)
    (('a', 'b'), ('a', 'b'), ())
    """
    parts = value if isinstance(value, list) else str(value or "").split(",")
    return tuple(str(part).strip() for part in parts if str(part).strip())


def typed(given: Mapping[str, Any]) -> SepoArguments:
    """Read the keys of this package; a key that is set to nothing counts as absent.

    Raises:
        SepoError: a value that is not of its key's type, or outside its range.
    """
    return SepoArguments(**{name: KEYS[name].read(value) for name, value in given.items() if value is not None})
