"""Provenance of a run: its recipe, without secrets, and the versions of the packages that ran it."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from sepo import __version__
from sepo.redaction import redacted

RECIPE_FILE = "_sepo_recipe.json"
"""File in the run's ``output_dir``, with the keys ``recipe`` and ``versions``. Trainers push no file whose name starts
with an underscore to a hub: a recipe names paths and data, and secrets that no name or pattern shows stay in it."""

_PACKAGES = (
    "llamafactory", "axolotl", "torch", "transformers", "peft", "trl", "accelerate", "datasets", "tokenizers",
    "bitsandbytes", "deepspeed", "pyarrow",
)  # fmt: skip


def package_versions() -> dict[str, str]:
    """Return the versions of Python, this package and the installed packages that it trains with."""
    versions = {"python": platform.python_version(), "sepo": __version__}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def write_provenance(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Write the recipe and the package versions to a run's directory.

    Args:
        folder: the run's ``output_dir``.
        recipe: the resolved keys and values; secrets are replaced here.
    """
    record = {"recipe": redacted(recipe), "versions": package_versions()}
    (folder / RECIPE_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="ascii")
