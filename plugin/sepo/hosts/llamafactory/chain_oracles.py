"""The oracles of `sepo pipeline`: the models that each kind trains, with every seed, and the keys that name them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sepo.errors import SepoError
from sepo.hosts.llamafactory.chain_recipes import continued, is_lora, trained_adapters
from sepo.recipe.keys import HOST_KEYS, ORACLE_KEYS, names_of
from sepo.recipe.oracle_stop import NEVER, stopping_keys
from sepo.recipe.resolve import REFUSED
from sepo.recipe.stage_names import is_sepo_stage

OWN_DPO = {"stage": "sepo", "objective": "dpo"}
"""DPO in sepo's step: the stage of the oracle."""
PREF_FTX = 1.0
"""``pref_ftx`` of an oracle if the recipe has none (docs/train_an_oracle.md). Not SePO's, which trains with DPO alone:
without it, tokens that both responses share fall as much as the wrong ones."""
REVERSED, REJECTED = "oracle_reversed", "oracle_rejected"
"""Steps, and directories, of the models that oracles are compared with: trained on exchanged pairs, on rejected
responses."""

_SECOND = {"reversed": REVERSED, "sft_contrast": REJECTED}
"""Step of the second model, by kind; the other kinds are compared with their base."""
_TRAINED_ON = {
    REVERSED: "oracle.kind reversed it would be that of the model on exchanged pairs, too",
    REJECTED: "oracle.kind sft_contrast it would be that of the model on rejected responses, too",
}
_OBJECTIVES: Mapping[str, Mapping[str, Any]] = {
    "ipo": {"objective": "ipo", "ipo_average": False},  # sums, as in the paper (Eq. 17): a bound on the whole response
    "minor_dpo": {"objective": "minor_dpo"},
}
"""Keys of a kind that is an objective; those of the section take precedence, except ``objective``."""
# Keys with which the model on exchanged pairs would read other pairs, or the oracle's outputs, or overwrite these.
_OF_ONE_ORACLE = ("dataset", "dataset_dir", "eval_dataset", "hub_model_id")
_OF_ONE_STEP = ("tokenized_path", "resume_from_checkpoint")
_OF_CHECKPOINTS = ("save_strategy", "save_steps", "save_total_limit")
_OF_ONE_SEED = ("hub_model_id", "resume_from_checkpoint")
_COMPARED_WITH = ("oracle_base_model", "oracle_base_model_adapters")
_PREFERENCE = (
    "objective", "pref_loss", "pref_ftx",
    *(name for name, row in HOST_KEYS.items() if row.sets or row.weighs or row.part),
)  # fmt: skip
"""Keys of a preference loss."""


@dataclass(frozen=True)
class TrainedOracle:
    """The runs of one oracle.

    Args:
        runs: name of the step and recipe of each: the oracle, and the model that it is compared with, if that is not
            its base.
    """

    runs: tuple[tuple[str, dict[str, Any]], ...]


@dataclass(frozen=True)
class OracleSection:
    """The section ``oracle``, read.

    Args:
        kind: how oracles are trained, see ``ORACLE_KEYS``.
        seeds: seeds of the oracles; None for one with the seed of the recipe.
        stop: the metric of early stopping, see ``stopping_keys``.
        checkpoints: number of checkpoints of each training whose scores are averaged; None for the model at its end.
        keys: the keys of the training.
    """

    kind: str
    seeds: tuple[int, ...] | None
    stop: str
    checkpoints: int | None
    keys: Mapping[str, Any]

    @classmethod
    def of(cls, section: Mapping[str, Any] | None) -> OracleSection:
        """Read the section.

        Raises:
            SepoError: a value is not valid, or keys contradict each other.
        """
        keys = dict(section or {})
        read = {}
        for key, row in ORACLE_KEYS.items():
            value = keys.pop(key.partition(".")[2], None)
            read[key] = row.default if value is None else row.read(value)
        found = cls(**{name.partition(".")[2]: value for name, value in read.items()}, keys=keys)
        found.check()
        return found

    def check(self) -> None:
        """Raise if a key of the training contradicts the kind.

        Raises:
            SepoError: naming the key.
        """
        stage = self.keys.get("stage")
        if self.seeds is not None and self.keys.get("seed") is not None:
            raise SepoError("section 'oracle' sets seed and seeds; remove seed.")
        if self.checkpoints is not None and self.stop != NEVER:
            raise SepoError(
                f"section 'oracle' sets stop: {self.stop}, which keeps the best checkpoint, and checkpoints, whose "
                "scores are averaged; remove one of them."
            )
        for name in _OF_CHECKPOINTS:
            if self.checkpoints is not None and self.keys.get(name) is not None:
                raise SepoError(
                    f"section 'oracle' sets {name} and checkpoints, which are saved evenly over the training; remove "
                    "one of them."
                )
        if self.kind in _OBJECTIVES:
            if self.keys.get("objective"):
                raise SepoError(
                    f"section 'oracle' sets objective and kind {self.kind}, which is an objective, too; remove one."
                )
            if stage not in (None, OWN_DPO["stage"]):
                raise SepoError(
                    f"section 'oracle' sets stage {stage}, but kind {self.kind} is an objective of stage "
                    f"{OWN_DPO['stage']}; remove one of them."
                )
        if self.kind == "sft_contrast":
            if stage not in (None, "sft"):
                raise SepoError(
                    f"section 'oracle' sets stage {stage}, but kind sft_contrast is SFT; remove one of them."
                )
            if self.stop not in (NEVER, "loss"):
                raise SepoError(
                    f"section 'oracle' sets stop: {self.stop}, but kind sft_contrast is SFT, which logs no metric but "
                    "the loss; set stop: loss, or remove it."
                )
            for name in _PREFERENCE:
                if self.keys.get(name) is not None:
                    raise SepoError(
                        f"section 'oracle' sets {name}, but kind sft_contrast trains without a preference loss and "
                        f"without a reference; remove {name}."
                    )


def trained_oracles(
    section: OracleSection,
    base: Mapping[str, Any] | None,
    training: Mapping[str, Any],
    policy: Mapping[str, Any],
    output: str,
    *,
    in_own_stage: Mapping[str, Any],
) -> list[TrainedOracle]:
    """Return the runs of all oracles of a round, those of the first seed first.

    Args:
        section: the section ``oracle``.
        base: the recipe of the run whose model the oracles start from, or None to start from the recipe's model.
        training: the shared keys of training.
        policy: the recipe of the policy.
        output: directory of the steps.
        in_own_stage: shared keys of an oracle that is trained in a stage of sepo.

    Raises:
        SepoError: a key would be that of several models, or the host cannot train an oracle from the base's adapters.
    """
    second = _SECOND.get(section.kind)
    found = []
    for number, seed in enumerate(section.seeds or (None,), start=1):
        after = "" if number == 1 else f"_{number}"
        keys = dict(section.keys) if seed is None else {**section.keys, "seed": seed}
        where = {"output": f"{output}/oracle{after}", "sample": f"{output}/sample"}
        oracle = _oracle_recipe(section, base, training, keys, **where)
        if is_sepo_stage(oracle["stage"]):
            oracle = {**in_own_stage, **oracle}
        runs = [(f"oracle{after}", oracle)]
        if second is not None:
            _check_second(second, oracle, section.keys, policy)
            runs.append((f"{second}{after}", _second_recipe(second, oracle, f"{output}/{second}{after}")))
        if len(section.seeds or ()) > 1:
            _check_seeds(oracle)
        found.append(TrainedOracle(tuple(runs)))
    return found


def _oracle_recipe(
    section: OracleSection,
    base: Mapping[str, Any] | None,
    training: Mapping[str, Any],
    keys: Mapping[str, Any],
    *,
    output: str,
    sample: str,
) -> dict[str, Any]:
    """Return the recipe of an oracle on the sample.

    It is DPO from the base on the pairs, with the base as reference (SePO, Eq. 5), another objective, or SFT on the
    chosen responses. ``keys`` are those of the section, with the seed of this oracle.
    """
    from sepo.hosts.llamafactory.sample import ANSWERS, PAIRS

    contrast = section.kind == "sft_contrast"
    inherited: dict[str, Any] = {}
    if base is not None:
        kept = ("model_name_or_path", "model_revision", "template", "finetuning_type")
        inherited = {name: base[name] for name in kept if name in base}
    stage: Mapping[str, Any] = {"stage": "sft"} if contrast else _preference_stage(section.kind, training, keys)
    oracle = {
        **training,
        "dataset": ANSWERS if contrast else PAIRS,
        "dataset_dir": sample,
        **inherited,
        "do_train": True,
        **_checkpoint_keys(section.checkpoints),
        **stopping_keys(section.stop, keys, stage={**keys, **stage}["stage"]),
        **stage,
        **keys,
        **{name: value for name, value in stage.items() if name in OWN_DPO},
    }
    oracle["output_dir"] = output
    start = {} if base is None else continued(oracle, base)
    return {**oracle, **{name: value for name, value in start.items() if not (contrast and name.startswith("ref_"))}}


def _checkpoint_keys(checkpoints: int | None) -> dict[str, Any]:
    """Return the keys of the host that save twice as many checkpoints, evenly spaced, and keep the last ones."""
    if checkpoints is None:
        return {}
    # Rounded down: the host takes a share of the steps, rounded up, and would save fewer for 3.0000001 steps.
    share = math.floor(1e6 / (2 * checkpoints)) / 1e6
    return {"save_strategy": "steps", "save_steps": share, "save_total_limit": checkpoints}


def _preference_stage(kind: str, training: Mapping[str, Any], section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stage of the oracle: DPO in sepo's step, which is faster than the host's and needs less memory.

    It is the host's own DPO if the recipe sets a loss or a key that only the host has. The objectives of the kinds have
    the likelihood of the chosen responses in addition, unless the recipe sets its weight.
    """
    recipe = {**training, **section}
    likelihood = {"pref_ftx": PREF_FTX} if recipe.get("pref_ftx") is None else {}
    if kind in _OBJECTIVES:
        return {"stage": OWN_DPO["stage"], **_OBJECTIVES[kind], **likelihood}
    if section.get("stage"):
        return {}
    if recipe.get("pref_loss") in (None, "sigmoid") and not any(recipe.get(name) for name in REFUSED):
        own = {"stage": OWN_DPO["stage"], "objective": section.get("objective", OWN_DPO["objective"])}
        return {**own, **likelihood} if own["objective"] in (OWN_DPO["objective"], *_OBJECTIVES) else own
    return {"stage": "dpo"}


def _second_recipe(second: str, oracle: Mapping[str, Any], output: str) -> dict[str, Any]:
    """Return the recipe of the model that an oracle is compared with: its own, on other data of the sample."""
    from sepo.hosts.llamafactory.sample import REJECTED_ANSWERS, REVERSED_PAIRS

    data = REVERSED_PAIRS if second == REVERSED else REJECTED_ANSWERS
    return {**oracle, "dataset": data, "output_dir": output}


def _check_second(
    second: str, oracle: Mapping[str, Any], section: Mapping[str, Any], policy: Mapping[str, Any]
) -> None:
    """Raise if a key would be that of both models, or if the policy's scores name another model."""
    for names, given in ((_OF_ONE_ORACLE, section), (_OF_ONE_STEP, oracle)):
        for name in names:
            if given.get(name):
                raise SepoError(
                    f"{name} is set for the oracle, and with {_TRAINED_ON[second]}, which is trained on those of the "
                    "sample; remove it."
                )
    for name in _COMPARED_WITH:
        if policy.get(name):
            kind = next(kind for kind, step in _SECOND.items() if step == second)
            raise SepoError(
                f"{name} is set, but with oracle.kind {kind} it names the second model of the oracle, which the "
                "pipeline trains; remove one of them."
            )


def _check_seeds(oracle: Mapping[str, Any]) -> None:
    for name in _OF_ONE_SEED:
        if oracle.get(name):
            raise SepoError(
                f"{name} is set for the oracle, and with several oracle.seeds it would be that of all trainings; "
                "remove it."
            )


def oracle_keys(
    section: OracleSection, oracles: Sequence[TrainedOracle], *, base: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the policy's ``oracle_*`` keys, which name the outputs of the earlier steps.

    Args:
        section: the section ``oracle``.
        oracles: the oracles, whose scores are averaged.
        base: the recipe of the run whose model they start from, or None.
    """
    named = [_keys_of_one(oracle, base) for oracle in oracles]
    first = named[0]
    made: dict[str, Any] = {} if section.checkpoints is None else {"oracle_checkpoints": section.checkpoints}
    if made and section.kind in _SECOND:
        made["oracle_base_checkpoints"] = True
    if len(named) == 1:
        return {**first, **made}
    shared = {name: value for name, value in first.items() if all(keys.get(name) == value for keys in named)}
    own = [{name: value for name, value in keys.items() if name not in shared} for keys in named]
    return {**shared, "oracles": own, **made}


def _keys_of_one(trained: TrainedOracle, base: Mapping[str, Any] | None) -> dict[str, Any]:
    oracle = trained.runs[0][1]
    second = trained.runs[1][1] if len(trained.runs) > 1 else None
    model = oracle.get("model_name_or_path")  # checked with the step
    made = {base["output_dir"]} if base is not None else set()
    if not is_lora(oracle):
        made.add(oracle["output_dir"])
        model = model if second is None else second["output_dir"]
        made |= set() if second is None else {model}
        keys = {"oracle_model": oracle["output_dir"], "oracle_base_model": model}
    else:
        keys = {"oracle_base_model": model, "oracle_model_adapters": trained_adapters(oracle)}
        if second is not None:
            keys["oracle_base_model_adapters"] = trained_adapters(second)
    if oracle.get("adapter_name_or_path") and second is None:
        keys["oracle_base_model_adapters"] = ",".join(names_of(oracle["adapter_name_or_path"]))
    if oracle.get("quantization_bit"):
        keys["oracle_model_quantization_bit"] = oracle["quantization_bit"]
    if oracle.get("model_revision") and model not in made:
        keys["oracle_base_model_revision"] = oracle["model_revision"]
    return keys
