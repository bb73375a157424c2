"""Our keys in a LLaMA-Factory recipe: taken out, checked and resolved before the host parses the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from sepo.errors import SepoError, nearest
from sepo.forward.scoring import DEFAULT_BATCH_TOKENS
from sepo.objectives import resolve_method
from sepo.training.settings import ModelSpec, OracleSpec, RunSettings

STAGES = ("sepo",)
HOST_STAGES = ("pt", "sft", "rm", "ppo", "dpo", "kto")

Arguments = dict[str, Any] | list[str]


@dataclass(frozen=True)
class SepoArguments:
    """The keys that our stages add to a recipe; ``help`` is their documentation."""

    sepo_gamma: float | None = field(
        default=None, metadata={"help": "Scale of SePO's rewards, gamma in Eq. 26. Default 1.0."}
    )
    select_ratio: float | None = field(
        default=None, metadata={"help": "Share of tokens selected in both responses, in (0, 1]. Default 0.3."}
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
    token_scores_dir: str | None = field(
        default=None, metadata={"help": "Where score stores are kept. Default: sepo/token_scores in the HF cache."}
    )
    score_batch_tokens: int = field(default=DEFAULT_BATCH_TOKENS, metadata={"help": "Padded tokens per scoring batch."})
    head_chunk_tokens: int | None = field(
        default=None, metadata={"help": "Tokens whose logits exist at a time. Default: 64 MiB of logits."}
    )


OUR_KEYS = tuple(item.name for item in fields(SepoArguments))

_FLOATS = {"sepo_gamma", "select_ratio", "chosen_select_ratio", "rejected_select_ratio"}
_INTEGERS = {"oracle_model_quantization_bit", "score_batch_tokens", "head_chunk_tokens"}

# Keys of the host's DPO that the stage `sepo` has no use for; a team that changes only `stage` leaves them behind.
_UNUSED_BY_SEPO = ("pref_beta", "simpo_gamma", "dpo_label_smoothing")
_REFUSED_BY_SEPO = {
    "ref_model": "SePO trains without a reference model; remove ref_model (the scoring models are named by oracle_*)",
    "ref_model_adapters": "SePO trains without a reference model; remove ref_model_adapters",
    "ref_model_quantization_bit": "SePO trains without a reference model; remove ref_model_quantization_bit",
    "pref_bco_weight": "the BCO term belongs to the host's DPO; remove pref_bco_weight or use stage: dpo",
    "ld_alpha": "LD-DPO's weight belongs to the host's DPO; remove ld_alpha or use stage: dpo",
    "use_unsloth": "Unsloth replaces the forward pass in which our stages exchange the head; remove use_unsloth",
    "use_kt": "KTransformers replaces the forward pass in which our stages exchange the head; remove use_kt",
    "streaming": "scores are joined to the data by row, and a stream has none; remove streaming",
}


def stage_of(args: Arguments) -> str | None:
    """The stage that a recipe (mapping) or a command line (list of words) names, or None."""
    stage = given_keys(args).get("stage")
    return None if stage is None else str(stage)


def given_keys(args: Arguments) -> dict[str, Any]:
    """The keys and values that a recipe or a command line sets."""
    return dict(args) if isinstance(args, dict) else dict(_options(args))


def _options(words: Sequence[str]) -> dict[str, str]:
    """``--key value`` and ``--key=value`` of a command line, values as text."""
    options: dict[str, str] = {}
    for position, word in enumerate(words):
        if not word.startswith("--"):
            continue
        name, equals, value = word[2:].partition("=")
        if not equals:
            following = words[position + 1] if position + 1 < len(words) else ""
            value = "true" if not following or following.startswith("--") else following
        options[name.replace("-", "_")] = value
    return options


def _without(words: Sequence[str], names: Iterable[str]) -> list[str]:
    """The command line without the options named, their values included."""
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


def _number(name: str, value: Any, kind: type[int] | type[float]) -> Any:
    what = "a whole number" if kind is int else "a number"
    if isinstance(value, bool) or (kind is int and isinstance(value, float) and not value.is_integer()):
        raise SepoError(f"{name} is {value!r}; {what} is expected.")
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise SepoError(f"{name} is {value!r}; {what} is expected.") from None


def _typed(given: Mapping[str, Any]) -> SepoArguments:
    values: dict[str, Any] = {}
    for name, value in given.items():
        if value is None:
            continue
        if name in _FLOATS:
            values[name] = _number(name, value, float)
        elif name in _INTEGERS:
            values[name] = _number(name, value, int)
        else:
            values[name] = ",".join(value) if isinstance(value, list) else str(value)
    arguments = SepoArguments(**values)
    for name in ("score_batch_tokens", "head_chunk_tokens"):
        number = getattr(arguments, name)
        if number is not None and number < 1:
            raise SepoError(f"{name} is {number}; it must be at least 1.")
    if arguments.oracle_model_quantization_bit not in (None, 4, 8):
        raise SepoError(
            f"oracle_model_quantization_bit is {arguments.oracle_model_quantization_bit}; 4 or 8 is expected."
        )
    return arguments


def _ratios(arguments: SepoArguments) -> dict[str, float]:
    separate = {"chosen": arguments.chosen_select_ratio, "rejected": arguments.rejected_select_ratio}
    ratios = {}
    for side, ratio in separate.items():
        if ratio is not None and arguments.select_ratio is not None:
            raise SepoError(
                f"select_ratio and {side}_select_ratio are both set; write select_ratio for both sides, or "
                "chosen_select_ratio and rejected_select_ratio."
            )
        value = arguments.select_ratio if ratio is None else ratio
        if value is None:
            continue
        if not 0.0 < value <= 1.0:
            name = "select_ratio" if ratio is None else f"{side}_select_ratio"
            raise SepoError(f"{name} is {value}; a share in (0, 1] is expected (0.3 selects 30 % of the tokens).")
        ratios[f"{side}_ratio"] = value
    return ratios


def _adapters(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _oracle(arguments: SepoArguments) -> OracleSpec:
    adapters = _adapters(arguments.oracle_model_adapters)
    if arguments.oracle_model is None and not adapters:
        raise SepoError(
            "stage sepo needs an oracle: set oracle_model (a full model trained with DPO) and oracle_base_model, or "
            "oracle_model_adapters (a LoRA adapter trained with DPO) over oracle_base_model."
        )
    if arguments.oracle_base_model is None and (arguments.oracle_model is None or not adapters):
        raise SepoError(
            "oracle_base_model is missing: name the model that the oracle was trained from; a token's score is "
            "log pi_oracle - log pi_base."
        )
    bits = arguments.oracle_model_quantization_bit
    base_model = arguments.oracle_base_model or arguments.oracle_model
    oracle_model = arguments.oracle_model or arguments.oracle_base_model
    assert base_model is not None  # held by the two refusals above
    assert oracle_model is not None
    return OracleSpec(
        oracle=ModelSpec(oracle_model, adapters, bits),
        base=ModelSpec(base_model, _adapters(arguments.oracle_base_model_adapters), bits),
    )


def _given(value: Any) -> bool:
    """Whether a host's key was set to something other than its off value."""
    return value not in (None, False, 0, 0.0, "", "false", "False", "0", "0.0")


def resolve(
    args: Arguments, *, host_keys: Iterable[str], allow_extra_keys: bool = False
) -> tuple[Arguments, RunSettings]:
    """Split a recipe of one of our stages into what the host parses and what we resolve.

    Args:
        args: the recipe as a mapping, or the words of a command line (``--stage sepo ...``).
        host_keys: every key that the host knows.
        allow_extra_keys: leave unknown keys to the host (its ALLOW_EXTRA_ARGS).

    Returns:
        The host's arguments, with ``stage: dpo`` in place of ours, and the frozen settings.

    Raises:
        SepoError: an unknown key, a value outside its range, or keys that contradict each other.
    """
    given = given_keys(args)
    stage = str(given["stage"])
    known = (*host_keys, *OUR_KEYS)
    for name in given:
        if name not in known and not allow_extra_keys and name not in ("h", "help"):
            raise SepoError(f"unknown key '{name}'.{nearest(name, known)}")
    loss = given.get("pref_loss")
    if loss not in (None, "sigmoid"):
        raise SepoError(
            f"pref_loss is {loss!r}, but stage {stage} has a loss of its own; remove pref_loss (sigmoid, its link, is "
            "accepted), or use stage: dpo."
        )
    for name, reason in _REFUSED_BY_SEPO.items():
        if _given(given.get(name)):
            raise SepoError(f"{name} is set, but {reason}.")
    arguments = _typed({name: given[name] for name in OUR_KEYS if name in given})
    hyperparameters: dict[str, float] = dict(_ratios(arguments))
    if arguments.sepo_gamma is not None:
        hyperparameters["gamma"] = arguments.sepo_gamma
    settings = RunSettings(
        stage=stage,
        method=resolve_method(stage, **hyperparameters),
        oracle=_oracle(arguments),
        token_scores_dir=arguments.token_scores_dir,
        score_batch_tokens=arguments.score_batch_tokens,
        head_chunk_tokens=arguments.head_chunk_tokens,
        notes=tuple(f"{name} is set, but stage {stage} does not use it." for name in _UNUSED_BY_SEPO if name in given),
    )
    # `simpo` makes the host treat the run as one without a reference (no second model, PiSSA allowed).
    dropped = (*OUR_KEYS, "stage", "pref_loss", "dpo_label_smoothing")
    if isinstance(args, dict):
        host: Arguments = {name: value for name, value in args.items() if name not in dropped}
        host |= {"stage": "dpo", "pref_loss": "simpo"}  # type: ignore[operator]
    else:
        host = [*_without(args, dropped), "--stage", "dpo", "--pref_loss", "simpo"]
    return host, settings


def check_stage(stage: str | None) -> None:
    """Refuse a stage that neither the host nor we have.

    Raises:
        SepoError: with the nearest known name.
    """
    known = (*HOST_STAGES, *STAGES)
    if stage is not None and stage not in known:
        raise SepoError(f"unknown stage '{stage}'.{nearest(stage, known)} Stages: {', '.join(known)}.")
