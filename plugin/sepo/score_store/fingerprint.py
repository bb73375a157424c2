"""What a model is, by content: a digest that a changed weight, adapter or configuration changes and a path does not."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from sepo.errors import SepoError

_WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
_CONFIGS = ("config.json", "adapter_config.json")
_BLOB = re.compile(r"[0-9a-f]{64}")
# These say where a model came from or what wrote it, not what it computes.
_PROVENANCE = ("_name_or_path", "base_model_name_or_path", "transformers_version", "peft_version", "revision")


def _file_digest(path: Path) -> str:
    target = path.resolve()
    if target.parent.name == "blobs" and _BLOB.fullmatch(target.name):
        return target.name  # the hub's cache names a large file by its SHA-256
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _config_digest(path: Path) -> str:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SepoError(f"{path} is not valid JSON ({error}); the model folder is damaged.") from error
    kept = {name: value for name, value in config.items() if name not in _PROVENANCE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def model_fingerprint(folder: Path) -> str:
    """Digest of the weights and the configuration in a folder.

    Args:
        folder: a model or adapter folder; files in subfolders (checkpoints of a training run) do not count, nor do
            an optimizer's or scheduler's states.

    Returns:
        64 hexadecimal digits, equal on every machine and at every path.

    Raises:
        SepoError: the folder holds no weights.
    """
    skipped = ("optimizer", "scheduler", "rng_state", "training_args", "scaler")
    weights = sorted(path for path in folder.iterdir() if path.suffix in _WEIGHTS and not path.name.startswith(skipped))
    if not weights:
        raise SepoError(f"{folder} holds no weights ({', '.join(_WEIGHTS)}); name a model or adapter folder.")
    parts = {path.name: _file_digest(path) for path in weights}
    parts |= {name: _config_digest(folder / name) for name in _CONFIGS if (folder / name).is_file()}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
