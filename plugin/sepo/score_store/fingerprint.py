"""Content digest of a model: it depends on weights, adapters and configuration, and not on the path."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from pathlib import Path

from sepo.errors import SepoError
from sepo.score_store.digests import cached_digest

_WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
_CONFIGS = ("config.json", "adapter_config.json")
_BLOB = re.compile(r"[0-9a-f]{64}")
# Origin of a model and versions of its writer, which do not affect what it computes.
_PROVENANCE = ("_name_or_path", "base_model_name_or_path", "transformers_version", "peft_version", "revision")


def _file_digest(path: Path) -> str:
    target = path.resolve()
    if target.parent.name == "blobs" and _BLOB.fullmatch(target.name):
        return target.name  # the hub's cache names large files by their SHA-256
    return cached_digest(path)


def _config_digest(path: Path) -> str:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SepoError(f"{path} is not valid JSON ({error}); restore the model's directory.") from error
    kept = {name: value for name, value in config.items() if name not in _PROVENANCE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def model_fingerprint(folder: Path, files: Collection[str] | None = None) -> str:
    """Return a digest of the weights and the configuration in a directory.

    Args:
        folder: directory of a model or adapter; files in subdirectories (checkpoints of a training run) and the states
            of optimizers and schedulers are ignored.
        files: names of the files that are loaded; None for all. A directory of the hub's cache may hold others, which
            other programs fetched.

    Returns:
        64 hexadecimal digits, independent of machine and path.

    Raises:
        SepoError: If the directory holds no weights.
    """
    skipped = ("optimizer", "scheduler", "rng_state", "training_args", "scaler")
    present = (path for path in folder.iterdir() if files is None or path.name in files)
    weights = sorted(path for path in present if path.suffix in _WEIGHTS and not path.name.startswith(skipped))
    if not weights:
        raise SepoError(f"{folder} holds no weights ({', '.join(_WEIGHTS)}); give the directory of a model or adapter.")
    parts = {path.name: _file_digest(path) for path in weights}
    parts |= {name: _config_digest(folder / name) for name in _CONFIGS if (folder / name).is_file()}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
