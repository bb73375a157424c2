"""The keys of `sepo pairs` in a recipe, resolved to one frozen object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sepo.errors import SepoError
from sepo.evaluation.generation import Decoding
from sepo.recipe.keys import PAIRS_KEYS, as_number, names_of

_HOST_SEED = 42
"""The host's default of ``seed``."""


@dataclass(frozen=True)
class PairsSettings:
    """How pairs are made, apart from model, data and judge.

    Args:
        samples: number of responses for each prompt, at least 2.
        decoding: how they are sampled.
        batch_tokens: tokens per batch, padding and new tokens included.
        min_margin: minimum difference of the rewards of a pair.
        folder: directory of the pairs.
        prompts: files with prompts; empty for the recipe's data set.
        engine: ``transformers`` or ``vllm``; None for vLLM where it can be used.
    """

    samples: int
    decoding: Decoding
    batch_tokens: int
    min_margin: float
    folder: Path
    prompts: tuple[Path, ...]
    engine: str | None = None


def pairs_settings(recipe: Mapping[str, Any]) -> PairsSettings:
    """Read the keys of ``PAIRS_KEYS``.

    Args:
        recipe: keys and values; ``seed`` is the default of ``pairs_seed``.

    Raises:
        SepoError: a value is not of its key's type, or outside its range.
    """
    values = {name: row.default for name, row in PAIRS_KEYS.items()}
    values |= {name: row.read(recipe[name]) for name, row in PAIRS_KEYS.items() if recipe.get(name) is not None}
    if values["pairs_seed"] is None:
        seed = as_number("seed", recipe.get("seed", _HOST_SEED), int)
        if seed < 0:
            raise SepoError(f"seed is {seed}, which samples cannot have; set pairs_seed to a number of at least 0.")
        values["pairs_seed"] = seed
    return PairsSettings(
        samples=values["pairs_samples"],
        decoding=Decoding(
            max_new_tokens=values["pairs_max_new_tokens"],
            temperature=values["pairs_temperature"],
            seed=values["pairs_seed"],
            top_p=values["pairs_top_p"],
        ),
        batch_tokens=values["pairs_batch_tokens"],
        min_margin=values["pairs_min_margin"],
        folder=Path(values["pairs_dir"]).expanduser(),
        prompts=tuple(Path(name).expanduser() for name in names_of(values["pairs_prompts"])),
        engine=values["pairs_engine"],
    )
