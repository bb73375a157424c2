"""What a run of ours leaves behind that a measurement of its oracle needs: models, template, cutoff, precision."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sepo.errors import SepoError
from sepo.recipe.settings import ModelSpec, OracleSpec
from sepo.runs.log_reader import SETTINGS_FILE
from sepo.score_store import ScoreStore

_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class ScoredRun:
    """A run's oracle and how it read the rows.

    Args:
        oracle: with its base.
        ratio: share of the tokens that the run selected in rejected answers, or None where it selected none.
        template: the host's name, or None where the oracle read in its own chat template or nothing says.
        cutoff_len: or None where nothing says.
        dtype: ``fp32``, ``bf16`` or ``fp16``, or None for what the host chose.
    """

    oracle: OracleSpec
    ratio: float | None = None
    template: str | None = None
    cutoff_len: int | None = None
    dtype: str | None = None


def is_run(folder: Path) -> bool:
    """Whether a folder is a run of ours, or a pipeline's with one in it."""
    return _settings_file(folder) is not None


def _settings_file(folder: Path) -> Path | None:
    places = (folder / SETTINGS_FILE, folder / "policy" / SETTINGS_FILE)
    return next((place for place in places if place.is_file()), None)


def read_run(folder: Path) -> ScoredRun:
    """Read a run's folder.

    Args:
        folder: a run's ``output_dir``, or a pipeline's.

    Raises:
        SepoError: it is no run of ours, cannot be read, or had no oracle.
    """
    file = _settings_file(folder)
    if file is None:
        raise SepoError(f"{folder} has no {SETTINGS_FILE}: a folder that a run of one of our stages wrote is expected.")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        specs = settings["oracle"]
        oracle = (
            None if specs is None else OracleSpec(*(ModelSpec.from_dict(specs[side]) for side in ("oracle", "base")))
        )
        stores = list(settings["token_scores"].values())
        ratio = None if settings["select"] is None else float(settings["select"]["rejected_ratio"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SepoError(f"{file} cannot be read ({type(error).__name__}: {error}); was it changed by hand?") from error
    if oracle is None:
        raise SepoError(
            f"the run in {folder} had no oracle (its token_scorer is {settings.get('token_scorer')}); name a data set "
            "in its place, and the models with --oracle-model or --model."
        )
    identity = _identity(stores)
    cutoff = identity.get("cutoff_len")
    return ScoredRun(
        oracle,
        ratio,
        template=identity.get("template"),
        cutoff_len=cutoff if isinstance(cutoff, int) else None,
        dtype=_DTYPES.get(str(identity.get("compute_dtype"))),
    )


def _identity(stores: list[str]) -> dict[str, Any]:
    """What the first store that is still there was made with; nothing where none is."""
    for store in stores:
        try:
            return dict(ScoreStore.at(Path(store)).manifest.identity)
        except SepoError:
            continue
    return {}
