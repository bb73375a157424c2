"""Frozen models of a recipe, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sepo.errors import SepoError

MAIN = "main"
"""Revision of a repository if none is named."""


@dataclass(frozen=True)
class ModelSpec:
    """A frozen scoring model by name.

    Args:
        model: local directory or hub name of a full model.
        adapters: its LoRA adapters, applied in this order.
        quantization_bit: 4, 8 or None.
        revision: branch, tag or commit of a hub name; None for its main branch, also if it is given as ``main``.
        adapter_revisions: the same for each adapter; empty if all are None.
    """

    model: str
    adapters: tuple[str, ...] = ()
    quantization_bit: int | None = None
    revision: str | None = None
    adapter_revisions: tuple[str | None, ...] = ()

    def __post_init__(self) -> None:
        own, *others = (None if name == MAIN else name for name in (self.revision, *self.adapter_revisions))
        object.__setattr__(self, "revision", own)
        object.__setattr__(self, "adapter_revisions", tuple(others) if any(others) else ())

    @property
    def revisions_of_adapters(self) -> tuple[str | None, ...]:
        """Revision of each adapter."""
        return self.adapter_revisions or (None,) * len(self.adapters)

    def with_adapters(self, count: int) -> ModelSpec:
        """Return the model with its first ``count`` adapters."""
        return replace(self, adapters=self.adapters[:count], adapter_revisions=self.adapter_revisions[:count])

    def at_commits(self, commits: Mapping[str, Mapping[str, str]]) -> ModelSpec:
        """Return the model at the commits that a run used: a branch may have moved since.

        Args:
            commits: ``{name: {revision: commit}}``, as a run records them; other names keep their revisions.
        """
        names = zip((self.model, *self.adapters), (self.revision, *self.revisions_of_adapters), strict=True)
        model, *adapters = (commits.get(name, {}).get(revision or MAIN, revision) for name, revision in names)
        return replace(self, revision=model, adapter_revisions=tuple(adapters))

    @property
    def text(self) -> str:
        """The model in words: its name and those of its adapters, with their revisions."""
        names = zip((self.model, *self.adapters), (self.revision, *self.revisions_of_adapters), strict=True)
        model, *adapters = (name if revision is None else f"{name}@{revision}" for name, revision in names)
        return " with ".join(filter(None, (model, ",".join(adapters))))

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, for the run's ``output_dir``."""
        values: dict[str, Any] = {
            "model": self.model,
            "adapters": list(self.adapters),
            "quantization_bit": self.quantization_bit,
        }
        if self.revision is not None:
            values["revision"] = self.revision
        if self.adapter_revisions:
            values["adapter_revisions"] = list(self.adapter_revisions)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSpec:
        """Construct from the values of ``as_dict``."""
        return cls(
            str(values["model"]),
            tuple(map(str, values["adapters"])),
            values["quantization_bit"],
            values.get("revision"),
            tuple(values.get("adapter_revisions") or ()),
        )


def revisions_for(adapters: tuple[str, ...], revisions: tuple[str, ...], *, key: str) -> tuple[str, ...]:
    """Return the revision of each adapter: one that is set applies to all.

    Args:
        adapters: names of the adapters.
        revisions: the values of ``key``.
        key: the recipe key that sets the revisions.

    Raises:
        SepoError: If their number fits neither.
    """
    if len(revisions) == 1:
        return revisions * len(adapters)
    if len(revisions) not in (0, len(adapters)):
        raise SepoError(
            f"{key} has {len(revisions)} revisions for {len(adapters)} adapters ({', '.join(adapters) or 'none'}); "
            "set one for all, or one for each."
        )
    return revisions


@dataclass(frozen=True)
class OracleSpec:
    """Oracle and base; the difference of their log-probabilities is the score of a token.

    Args:
        oracle: the model trained with preference optimization.
        base: the model that it was trained from, or one trained on the same pairs with chosen and rejected exchanged.

    Raises:
        SepoError: If both are the same model, so that every score would be zero.
    """

    oracle: ModelSpec
    base: ModelSpec

    def __post_init__(self) -> None:
        if replace(self.oracle, quantization_bit=self.base.quantization_bit) == self.base:
            raise SepoError(
                f"the oracle and its base are the same model ({self.oracle.model!r}), so every token would score zero; "
                "oracle_model or oracle_model_adapters must name a model that DPO trained from oracle_base_model."
            )

    @property
    def shared_adapters(self) -> tuple[str, ...]:
        """Adapters that both models start with: merged once if both share one set of weights."""
        shared = []
        sides = [zip(spec.adapters, spec.revisions_of_adapters, strict=True) for spec in (self.oracle, self.base)]
        for of_oracle, of_base in zip(*sides, strict=False):
            if of_oracle != of_base:
                break
            shared.append(of_oracle[0])
        return tuple(shared)

    @property
    def one_set_of_weights(self) -> bool:
        """Whether the two differ by at most one adapter each over the same weights."""
        shared = len(self.shared_adapters)
        same_weights = self.oracle.with_adapters(0) == self.base.with_adapters(0)
        mergeable = shared == 0 or self.oracle.quantization_bit is None
        return same_weights and mergeable and max(len(self.oracle.adapters), len(self.base.adapters)) - shared <= 1

    @property
    def text(self) -> str:
        """Oracle and base in words."""
        return f"{self.oracle.text} over {self.base.text}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, for the run's ``output_dir``."""
        return {"oracle": self.oracle.as_dict(), "base": self.base.as_dict()}


@dataclass(frozen=True)
class OracleSet:
    """The oracles of a run, whose scores are averaged, and what is made of the mean.

    Args:
        members: the oracles, at least one.
        scores: one of ``sepo.selection.estimators.ORACLE_SCORES``.
        checkpoints: number of checkpoints of each oracle in place of its model, or None.
        base_checkpoints: whether each is compared with the checkpoint of the same step of the base.
    """

    members: tuple[OracleSpec, ...]
    scores: str = "ratio"
    checkpoints: int | None = None
    base_checkpoints: bool = False

    @property
    def first(self) -> OracleSpec:
        """The first oracle; the only one of most runs."""
        return self.members[0]

    @property
    def plain(self) -> bool:
        """Whether the scores are the log-ratios of one oracle and its base."""
        return self == OracleSet((self.first,))

    @property
    def text(self) -> str:
        """The oracles in words."""
        named = "; ".join(member.text for member in self.members)
        if len(self.members) > 1:
            named = f"the mean of {len(self.members)}: {named}"
        if self.checkpoints is not None:
            named += f", the last {self.checkpoints} checkpoints{' of both' if self.base_checkpoints else ''}"
        return named if self.scores == "ratio" else f"{named} ({self.scores})"

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, for the run's ``output_dir``."""
        return {
            "members": [member.as_dict() for member in self.members],
            "scores": self.scores,
            "checkpoints": self.checkpoints,
            "base_checkpoints": self.base_checkpoints,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OracleSet:
        """Construct from the values of ``as_dict``."""
        members = (
            OracleSpec(*(ModelSpec.from_dict(member[side]) for side in ("oracle", "base")))
            for member in values["members"]
        )
        return cls(tuple(members), str(values["scores"]), values["checkpoints"], bool(values["base_checkpoints"]))
