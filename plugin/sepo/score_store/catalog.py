"""Stores of a root directory: list, find by key prefix, names of models and data, remove."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sepo.errors import SepoError
from sepo.score_store.disk import MANIFEST_LOCK, locked, make_folder, read_if_there, replace_durably, users_gone
from sepo.score_store.identity import KEY_CHARACTERS, canonical_json

_KEY = re.compile(rf"[0-9a-f]{{{KEY_CHARACTERS}}}")
_NAMES = ".names"
_LISTED = 5


def stored(root: Path) -> list[Path]:
    """Return the directories of all stores in a root, ordered by key; empty if the root does not exist."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if _KEY.fullmatch(path.name) and path.is_dir())


def find_store(name: str, *, root: Path) -> Path:
    """Return the directory of the store that a path or key prefix identifies.

    Args:
        name: path of a store, or prefix of a key.
        root: directory in which keys are looked up.

    Raises:
        SepoError: If no store or several stores match; the message lists them.
    """
    if Path(name, "manifest.json").is_file():
        return Path(name).absolute()
    there = stored(root)
    found = [path for path in there if name and path.name.startswith(name.lower())]
    if len(found) == 1:
        return found[0]
    if found:
        raise SepoError(
            f"'{name}' is the prefix of {len(found)} keys in {root} ({_keys(found)}); give more characters of the key."
        )
    among = f"its stores: {_keys(there)}" if there else "it has none"
    raise SepoError(
        f"'{name}' is neither the directory of a score store nor the prefix of a key in {root} ({among}); `sepo scores "
        "ls` lists them, --dir sets another root."
    )


def write_names(root: Path, key: str, names: Mapping[str, str]) -> None:
    """Record the names of a store's models and data, outside its directory, which holds content only.

    The names of the last run that used a store are kept. Failure to write is ignored: nothing depends on the file.
    """
    path = root / _NAMES / f"{key}.json"
    data = canonical_json(dict(names), name="names") + b"\n"
    with suppress(SepoError):
        if read_if_there(path) != data:
            make_folder(path.parent)
            replace_durably(path=path, data=data)


def read_names(root: Path, key: str) -> dict[str, str]:
    """Return the names recorded by :func:`write_names`; empty if there is no readable file."""
    try:
        found = json.loads(read_if_there(root / _NAMES / f"{key}.json") or b"{}")
    except (SepoError, ValueError, RecursionError):
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def disk_size(path: Path) -> int:
    """Return the total size of a store's files in bytes."""
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file())


def remove_store(path: Path) -> None:
    """Remove a store atomically; readers that have mapped its files keep access to them.

    Args:
        path: ``<root>/<key>``.

    Raises:
        SepoError: If another process is filling it, or the file system refuses.
    """
    root, key = path.parent, path.name
    locks = root / ".locks" / key
    with locked(locks / MANIFEST_LOCK, wait=False) as held:
        if not held or not users_gone(locks):
            raise SepoError(
                f"another process is filling the score store {path}; wait for it to finish, or stop it, then remove "
                "the store."
            )
        gone = root / f".removed-{key}-{secrets.token_hex(4)}"
        try:
            os.rename(path, gone)
            shutil.rmtree(gone)
            (root / _NAMES / f"{key}.json").unlink(missing_ok=True)
        except OSError as error:
            raise SepoError(
                f"cannot remove {error.filename or path}: {error.strerror}; run the command as the owner of the files."
            ) from error


def _keys(paths: list[Path]) -> str:
    shown = ", ".join(path.name[:12] for path in paths[:_LISTED])
    return shown if len(paths) <= _LISTED else f"{shown} and {len(paths) - _LISTED} more"
