"""The keys that our stages add to a recipe, with their help, and their values as numbers, words and flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sepo.errors import SepoError
from sepo.forward.sequences import DEFAULT_BATCH_TOKENS


def _key(meaning: str, *, shown: str = "", default: Any = None) -> Any:
    """A key; ``shown`` is its default in words where the value does not say it."""
    return field(default=default, metadata={"help": meaning, "default": shown})


@dataclass(frozen=True)
class SepoArguments:
    """The keys that our stages add to a recipe; ``help`` is their documentation (``docs/keys.md``)."""

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
    sepo_gamma: float | None = _key("Scale of SePO's rewards (γ in Eq. 26; the authors' code has 1).", shown="1.0")
    dpop_lambda: float | None = _key("`dpop`: weight of the penalty on a falling chosen answer.", shown="50")
    tdpo_alpha: float | None = _key("`tdpo2`: weight of its KL terms, α in its paper.", shown="0.5")
    rrhf_sft_weight: float | None = _key("`rrhf`: weight of its likelihood term.", shown="1.0")
    ipo_average: bool | None = _key("`ipo`: over mean (true) or summed log-ratios.", shown="true")
    select_ratio: float | None = _key(
        "Share of tokens selected in both answers, in (0, 1].", shown="0.3 (`selective_dpo` 0.4)"
    )
    select_rule: str | None = _key(
        "`floor`: max(1, ⌊ratio x length⌋) tokens; `quantile`: all from that quantile on, ties included (the "
        "Selective-DPO authors' rule).",
        shown="`floor`",
    )
    select_unit: str | None = _key(
        "What is selected as a whole. `span`: runs of at least `select_span_tokens`, grown around the best tokens; "
        "`step`: lines and sentences by their mean score, until the share is reached.",
        shown="`token`",
    )
    select_span_tokens: int | None = _key("Length of the shortest span of `select_unit: span`.", shown="3")
    select_scope: str | None = _key(
        "What the share is a share of: each `response`'s tokens; the `pair`'s (its best tokens, at least one of each "
        "answer); the `dataset`'s (one threshold over the training set, at least one token per answer; not for live "
        "scorers).",
        shown="`response`",
    )
    chosen_select_ratio: float | None = _key(
        "Share of tokens selected in chosen answers (highest scores).", shown="`select_ratio`"
    )
    rejected_select_ratio: float | None = _key(
        "Share of tokens selected in rejected answers (lowest scores).", shown="`select_ratio`"
    )
    oracle_model: str | None = _key("Full model trained with DPO, folder or hub name; any tokenizer.")
    oracle_model_adapters: str | None = _key(
        "LoRA adapters of the oracle, over `oracle_model` or else over `oracle_base_model`; a list or with commas, "
        "applied in order."
    )
    oracle_base_model: str | None = _key(
        "What the oracle was trained from, with the oracle's tokenizer.", shown="`oracle_model`"
    )
    oracle_base_model_adapters: str | None = _key("Adapters of the oracle's base (its SFT adapter, say).")
    oracle_model_quantization_bit: int | None = _key("4 or 8: load the scoring models with bitsandbytes.")
    treg_alpha: float | None = _key(
        "Weight of T-REG's regularizer, in any objective; 0 is none.",
        shown="0.25 in stage `treg` and for `dpo_reg`, `simpo_reg`; else 0",
    )
    treg_weighting: str | None = _key(
        "`sequence`: the regularizer pulls as hard as the pair's preference does (Eq. 2); `static`: with weight 1.",
        shown="`sequence`",
    )
    treg_rewards: str | None = _key(
        "Token rewards from contrastive `prompts`, or from the `oracle`: σ(log π_oracle - log π_base) - 0.5.",
        shown="`prompts`",
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
    score_batch_tokens: int = _key("Padded tokens per scoring batch.", default=DEFAULT_BATCH_TOKENS)
    batch_tokens: int | None = _key(
        "Most tokens that go through the policy at once: a larger device batch is split into parts of whole pairs, "
        "each with its own backward pass; the loss stays the mean over its pairs.",
        shown="no limit",
    )
    head_chunk_tokens: int | None = _key("Tokens whose logits exist at a time.", shown="64 MiB of logits")


OUR_KEYS = tuple(item.name for item in fields(SepoArguments))

_FLOATS = {
    "sepo_gamma",
    "dpop_lambda",
    "tdpo_alpha",
    "rrhf_sft_weight",
    "treg_alpha",
    "select_ratio",
    "chosen_select_ratio",
    "rejected_select_ratio",
}
_FLAGS = {"ipo_average", "ref_precompute"}
_INTEGERS = {
    "select_span_tokens",
    "oracle_model_quantization_bit",
    "score_batch_tokens",
    "batch_tokens",
    "head_chunk_tokens",
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
    """Our keys with values of their types; a key that is set to nothing counts as absent.

    Raises:
        SepoError: a value that is not of its key's type, or outside its range.
    """
    values: dict[str, Any] = {}
    for name, value in given.items():
        if value is None:
            continue
        if name in _FLOATS:
            values[name] = as_number(name, value, float)
        elif name in _INTEGERS:
            values[name] = as_number(name, value, int)
        elif name in _FLAGS:
            values[name] = as_flag(name, value)
        else:
            values[name] = ",".join(value) if isinstance(value, list) else str(value)
    arguments = SepoArguments(**values)
    for name in ("score_batch_tokens", "batch_tokens", "head_chunk_tokens", "select_span_tokens"):
        number = getattr(arguments, name)
        if number is not None and number < 1:
            raise SepoError(f"{name} is {number}; it must be at least 1.")
    if arguments.oracle_model_quantization_bit not in (None, 4, 8):
        raise SepoError(
            f"oracle_model_quantization_bit is {arguments.oracle_model_quantization_bit}; 4 or 8 is expected."
        )
    return arguments
