"""Reader of a run's files for measurements of its oracle: models, template, cutoff, precision."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sepo.errors import SepoError
from sepo.recipe.model_specs import OracleSet, OracleSpec
from sepo.runs.log_reader import SETTINGS_FILE
from sepo.runs.selection_settings import selected_ratio
from sepo.score_store import ScoreStore
from sepo.scoring.oracle_members import oracle_members

_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class ScoredRun:
    """Oracle of a run, and how it read the rows.

    Args:
        oracles: the oracles with their bases, whose scores the run averaged; checkpoints one by one.
        scores: what the run made of them, one of ``ORACLE_SCORES``.
        ratio: share of the tokens that the run selected in rejected responses, below 1; None if it selected all, or
            otherwise than by a share.
        template: the host's name of the template, or None if the oracle read in its own chat template or it is not
            recorded.
        cutoff_len: the cutoff, or None if it is not recorded.
        dtype: ``fp32``, ``bf16`` or ``fp16``, or None for the host's choice.
        folder: directory of the run's files; that of the policy if a pipeline's is given.
    """

    oracles: tuple[OracleSpec, ...]
    scores: str = "ratio"
    ratio: float | None = None
    template: str | None = None
    cutoff_len: int | None = None
    dtype: str | None = None
    folder: Path = Path()

    @property
    def oracle(self) -> OracleSpec:
        """The first oracle, the only one of most runs."""
        return self.oracles[0]


def is_run(folder: Path) -> bool:
    """Return whether a directory is the ``output_dir`` of a run of a sepo stage, or of a pipeline that contains one."""
    return _settings_file(folder) is not None


def _settings_file(folder: Path) -> Path | None:
    places = (folder / SETTINGS_FILE, folder / "policy" / SETTINGS_FILE)
    return next((place for place in places if place.is_file()), None)


def read_run(folder: Path) -> ScoredRun:
    """Read the oracle of a run from its directory.

    Args:
        folder: ``output_dir`` of a run or of a pipeline.

    Raises:
        SepoError: If it is not a run of a sepo stage, cannot be read, had no oracle, or its checkpoints are gone.
    """
    file = _settings_file(folder)
    if file is None:
        raise SepoError(f"{folder} has no {SETTINGS_FILE}, expected the output_dir of a run of a sepo stage.")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        specs, commits = settings["oracle"], settings.get("commits") or {}
        several = settings.get("oracles")
        if several is None:
            several = {"members": [specs] if specs else [], "scores": "ratio", "checkpoints": None}
        oracles = OracleSet.from_dict({"base_checkpoints": False, **several})
        stores = list(settings["token_scores"].values())
        ratio = None if settings["select"] is None else selected_ratio(settings, "rejected")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SepoError(
            f"{file} cannot be read ({type(error).__name__}: {error}); restore it, or name the models with "
            "--oracle-model or --model."
        ) from error
    if not oracles.members:
        raise SepoError(
            f"the run in {folder} had no oracle (its token_scorer is {settings.get('token_scorer')}); give a data set "
            "in its place, and the models with --oracle-model or --model."
        )
    identity = _identity(stores)
    cutoff = identity.get("cutoff_len")
    members = (
        OracleSpec(*(spec.at_commits(commits) for spec in (member.oracle, member.base))) for member in oracles.members
    )
    return ScoredRun(
        oracle_members(replace(oracles, members=tuple(members))),
        oracles.scores,
        None if ratio == 1 else ratio,
        template=identity.get("template"),
        cutoff_len=cutoff if isinstance(cutoff, int) else None,
        dtype=_DTYPES.get(str(identity.get("infer_dtype", identity.get("compute_dtype")))),
        folder=file.parent,
    )


def _identity(stores: list[str]) -> dict[str, Any]:
    """Return the identity of the first store that still exists; empty if none does."""
    for store in stores:
        try:
            return dict(ScoreStore.at(Path(store)).manifest.identity)
        except SepoError:
            continue
    return {}
