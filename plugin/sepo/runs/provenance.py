"""Provenance of a run: its recipe, without secrets, and the versions of the packages that ran it."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from sepo import __version__

RECIPE_FILE = "_sepo_recipe.json"
"""File in the run's ``output_dir``, with the keys ``recipe`` and ``versions``. Trainers push no file whose name starts
with an underscore to a hub: a recipe names paths and data, and secrets are detected by name and pattern only."""

HIDDEN = "(not recorded)"
"""Replacement of a secret."""

_PACKAGES = (
    "llamafactory", "axolotl", "torch", "transformers", "peft", "trl", "accelerate", "datasets", "tokenizers",
    "bitsandbytes", "deepspeed", "pyarrow",
)  # fmt: skip
_SECRET_NAME = re.compile(r"(?i)(^|_|-|\.)(token|key|secret|passw(or)?d|credentials?|auth)$|api_?key|access_?key")
_SECRET_VALUE = re.compile(
    r"""
    \b( hf_[A-Za-z0-9]{20,} | api_org_[A-Za-z0-9]{20,} | ms-[0-9a-f]{8}-[0-9a-f-]{20,}                # model hubs
       | sk-[A-Za-z0-9_-]{20,} | gh[opsur]_[A-Za-z0-9]{20,} | github_pat_\w{20,} | glpat-[\w-]{20,}   # other issuers
       | xox[abeprs]-[\w-]{10,} | A[KS]IA[A-Z0-9]{16} | eyJ[\w-]+\.[\w-]+\.[\w-]+ )
    | ://[^/\s:@]*:[^/\s@]+@    # in addresses
    | ^[0-9a-fA-F]{32,}$        # Weights and Biases, SwanLab
    """,
    re.VERBOSE,
)
_DIGESTS = re.compile(r"(?i)revision|commit|sha|hash")


def redacted(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's keys and values as plain JSON, with secrets replaced.

    Replaced are values of keys that end in ``token``, ``key``, ``secret`` or the like, and values that look like a
    token of a known issuer, a URL with a password or a long hexadecimal number (except revisions).

    >>> redacted({"stage": "sepo", "hf_hub_token": "x", "model_revision": "3" * 40})["hf_hub_token"]
    '(not recorded)'
    """
    return {str(name): _plain(str(name), value) for name, value in recipe.items()}


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    secret = _SECRET_NAME.search(name) or (_SECRET_VALUE.search(str(value)) and not _DIGESTS.search(name))
    return HIDDEN if secret else str(value)


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
