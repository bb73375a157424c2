"""The keys that our stages add to a recipe, with their help, and their values as numbers, words and flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sepo.errors import SepoError
from sepo.forward.scoring import DEFAULT_BATCH_TOKENS


@dataclass(frozen=True)
class SepoArguments:
    """The keys that our stages add to a recipe; ``help`` is their documentation."""

    objective: str | None = field(
        default=None,
        metadata={"help": "The objective: reward, penalty and link. Default: the stage's own."},
    )
    token_scorer: str | None = field(
        default=None,
        metadata={
            "help": "What selects tokens: oracle, policy_ref and confidence (live), file, random, none or a "
            "registered one. Default: the objective's own."
        },
    )
    sepo_gamma: float | None = field(
        default=None, metadata={"help": "Scale of SePO's rewards, gamma in Eq. 26. Default 1.0."}
    )
    dpop_lambda: float | None = field(
        default=None, metadata={"help": "Weight of DPOP's penalty on a falling chosen answer. Default 50."}
    )
    tdpo_alpha: float | None = field(
        default=None, metadata={"help": "Weight of TDPO2's KL terms, alpha in its paper. Default 0.5."}
    )
    rrhf_sft_weight: float | None = field(
        default=None, metadata={"help": "Weight of RRHF's likelihood term. Default 1."}
    )
    ipo_average: bool | None = field(
        default=None, metadata={"help": "IPO over mean (true, the default) or summed log-ratios."}
    )
    select_ratio: float | None = field(
        default=None,
        metadata={"help": "Share of tokens selected in both responses, in (0, 1]. Default 0.3 (selective_dpo 0.4)."},
    )
    select_rule: str | None = field(
        default=None,
        metadata={"help": "floor (the default) or quantile, the Selective-DPO authors' rule, which keeps ties."},
    )
    select_unit: str | None = field(
        default=None,
        metadata={"help": "What is selected as a whole: token (the default), span, or step (line, sentence)."},
    )
    select_span_tokens: int | None = field(
        default=None, metadata={"help": "Length of the shortest span of select_unit: span. Default 3."}
    )
    select_scope: str | None = field(
        default=None,
        metadata={"help": "What the ratio is a share of: each response (the default), the pair, or the dataset."},
    )
    chosen_select_ratio: float | None = field(
        default=None, metadata={"help": "Share of tokens selected in chosen responses (highest scores)."}
    )
    rejected_select_ratio: float | None = field(
        default=None, metadata={"help": "Share of tokens selected in rejected responses (lowest scores)."}
    )
    oracle_model: str | None = field(
        default=None, metadata={"help": "The oracle: folder or hub name of a full model trained with DPO."}
    )
    oracle_model_adapters: str | None = field(
        default=None,
        metadata={"help": "LoRA adapters of the oracle, over oracle_model or else oracle_base_model; comma-separated."},
    )
    oracle_base_model: str | None = field(
        default=None, metadata={"help": "The model that the oracle was trained from. Default: oracle_model."}
    )
    oracle_base_model_adapters: str | None = field(
        default=None, metadata={"help": "LoRA adapters of the oracle's base (its SFT adapter, say); comma-separated."}
    )
    oracle_model_quantization_bit: int | None = field(
        default=None, metadata={"help": "Load both scoring models in 4 or 8 bits (bitsandbytes)."}
    )
    treg_alpha: float | None = field(
        default=None,
        metadata={"help": "Weight of T-REG's regularizer, in any objective. Default 0.25 in stage treg, else 0."},
    )
    treg_weighting: str | None = field(
        default=None,
        metadata={"help": "sequence (the default): the regularizer pulls as the pair's preference does; static: not."},
    )
    treg_rewards: str | None = field(
        default=None, metadata={"help": "Token rewards from contrastive prompts (the default) or from the oracle."}
    )
    treg_eval_model: str | None = field(
        default=None, metadata={"help": "Who is prompted for token rewards. Default: the reference, at its start."}
    )
    ref_precompute: bool = field(
        default=False,
        metadata={"help": "Compute the reference's log-probabilities before training and load no second model."},
    )
    token_scores_dir: str | None = field(
        default=None, metadata={"help": "Where score stores are kept. Default: sepo/token_scores in the HF cache."}
    )
    score_batch_tokens: int = field(default=DEFAULT_BATCH_TOKENS, metadata={"help": "Padded tokens per scoring batch."})
    batch_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Most tokens that go through the policy at once: a larger device batch is split into parts of "
            "whole pairs, and the loss stays the mean over its pairs. Default: no limit."
        },
    )
    head_chunk_tokens: int | None = field(
        default=None, metadata={"help": "Tokens whose logits exist at a time. Default: 64 MiB of logits."}
    )


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
