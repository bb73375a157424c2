"""The keys of a recipe that say how sampled responses are judged, resolved to one frozen object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sepo.errors import SepoError, nearest
from sepo.judges import available_judges, find_judge
from sepo.judges.registry import POLICY, REWARD_MODEL
from sepo.recipe.keys import KEYS, REWARD_KEYS, names_of
from sepo.recipe.model_specs import ModelSpec, OracleSpec, revisions_for
from sepo.recipe.reference import OWN_START, base_of_reference_adapters, own_start, reference_spec

_OF_A_MODEL = tuple(name for name in REWARD_KEYS if name.startswith("judge_model"))
_OF_A_VERIFIER = ("judge_options", "expected_column")


@dataclass(frozen=True)
class RewardSettings:
    """How sampled responses are judged.

    Args:
        judge: ``REWARD_MODEL``, ``POLICY``, or the name of a verifier, which compares with an expected answer.
        options: options of the verifier.
        expected_column: column with the expected answers; empty unless ``judge`` is a verifier.
        model: the reward model; None unless ``judge`` is ``REWARD_MODEL``.
        policy: the policy and its reference, as oracle and base; None unless ``judge`` is ``POLICY``.
        reference_key: the recipe key that names the reference; empty unless ``judge`` is ``POLICY``.
        batch_tokens: padded tokens of one batch of a model.
        head_chunk_tokens: number of tokens whose logits are in memory at a time, or None for 64 MiB of logits.
    """

    judge: str
    options: Mapping[str, str] = field(default_factory=dict)
    expected_column: str = ""
    model: ModelSpec | None = None
    policy: OracleSpec | None = None
    reference_key: str = ""
    batch_tokens: int = KEYS["score_batch_tokens"].default
    head_chunk_tokens: int | None = None

    @property
    def is_verifier(self) -> bool:
        """Whether the judge compares with expected answers, and loads no model."""
        return self.judge not in (REWARD_MODEL, POLICY)

    @property
    def keys_of_models(self) -> dict[str, str]:
        """The recipe keys that name ``policy`` and ``reference``; the reference of an adapter is in the policy's."""
        return {"policy": OWN_START, "reference": "ref_model" if self.reference_key == "ref_model" else OWN_START}

    @property
    def text(self) -> str:
        """The judge in words, for messages."""
        if self.model is not None:
            return f"the reward model {self.model.text}"
        return f"judge {self.judge}"

    def as_dict(self) -> dict[str, Any]:
        """Return what the rewards depend on by name, as plain JSON values."""
        found: dict[str, Any] = {"judge": self.judge}
        if self.model is not None:
            found["model"] = self.model.as_dict()
        if self.policy is not None:
            found |= {"policy": self.policy.oracle.as_dict(), "reference": self.policy.base.as_dict()}
        if self.is_verifier:
            found |= {"options": dict(self.options), "expected_column": self.expected_column}
        return found


def resolve_rewards(given: Mapping[str, Any]) -> RewardSettings:
    """Resolve the keys of ``REWARD_KEYS``.

    Args:
        given: keys and values of a recipe, with those of the policy and its reference (``judge: policy`` reads them).

    Raises:
        SepoError: ``judge`` is missing or unknown, a key that it needs is missing, or a key belongs to another judge.
    """
    given = {name: value for name, value in given.items() if value is not None}
    read = {name: row.read(given[name]) for name, row in REWARD_KEYS.items() if name in given}
    known = (*available_judges(), REWARD_MODEL, POLICY)
    judge = read.get("judge")
    if not judge:
        raise SepoError(f"judge is missing; set it to one of {', '.join(known)}.")
    if judge not in known:
        raise SepoError(f"judge is {judge!r}, expected one of {', '.join(known)}.{nearest(judge, known)}")
    verifier = judge not in (REWARD_MODEL, POLICY)
    _refuse(read, () if verifier else _OF_A_VERIFIER, judge, "a verifier, which compares with expected answers")
    _refuse(read, () if judge == REWARD_MODEL else _OF_A_MODEL, judge, f"judge: {REWARD_MODEL}")
    found = RewardSettings(
        judge,
        **{
            field_name: KEYS[key].read(given[key])
            for field_name, key in (("batch_tokens", "score_batch_tokens"), ("head_chunk_tokens", "head_chunk_tokens"))
            if key in given
        },
    )
    if judge == REWARD_MODEL:
        return replace(found, model=_reward_model(read))
    if judge == POLICY:
        key, policy = _policy_and_reference(given)
        return replace(found, policy=policy, reference_key=key)
    if not read.get("expected_column"):
        raise SepoError(
            f"judge is {judge}, but expected_column is missing; set it to the column of the prompts' rows that has the "
            "expected answers."
        )
    options = read.get("judge_options", {})
    find_judge(judge, **options)
    return replace(found, options=options, expected_column=read["expected_column"])


def _refuse(read: Mapping[str, Any], names: tuple[str, ...], judge: str, owner: str) -> None:
    for name in names:
        if read.get(name):
            raise SepoError(f"{name} is set, but judge is {judge}; remove {name}, which belongs to {owner}.")


def _reward_model(read: Mapping[str, Any]) -> ModelSpec:
    if not read.get("judge_model"):
        raise SepoError(
            f"judge is {REWARD_MODEL}, but judge_model is missing; set it to a sequence classification model, or to "
            "the model below the adapters of stage rm in judge_model_adapters, as local directory or hub name."
        )
    adapters = names_of(read.get("judge_model_adapters"))
    revisions_key = "judge_model_adapters_revision"
    if read.get(revisions_key) and not adapters:
        raise SepoError(
            f"{revisions_key} is set, but judge_model_adapters is not; set judge_model_adapters, or remove it."
        )
    revisions = revisions_for(adapters, names_of(read.get(revisions_key)), key=revisions_key)
    return ModelSpec(
        read["judge_model"],
        adapters,
        read.get("judge_model_quantization_bit"),
        read.get("judge_model_revision"),
        revisions,
    )


def _policy_and_reference(given: Mapping[str, Any]) -> tuple[str, OracleSpec]:
    """Return the key that names the reference, and both models; the reference of an adapter is the model below it."""
    policy = own_start(given)
    keys = {**given, **base_of_reference_adapters(given)}
    if keys.get("ref_model"):
        key, reference = reference_spec(keys)
    else:
        key, reference = "adapter_name_or_path", policy.with_adapters(max(0, len(policy.adapters) - 1))
    if replace(reference, quantization_bit=policy.quantization_bit) == policy:
        raise SepoError(
            f"judge is {POLICY}, and the reference is the policy itself ({policy.text}), so every reward would be 0; "
            "set ref_model to the model that the policy was trained from."
        )
    return key, OracleSpec(oracle=policy, base=reference)
