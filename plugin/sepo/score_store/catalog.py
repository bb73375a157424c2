"""All stores of a root: finding one by a piece of its key, what people call its parts, and removing it."""

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
    """Return the folders of all stores in a root, ordered by key; none where there is no such root."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if _KEY.fullmatch(path.name) and path.is_dir())


def find_store(name: str, *, root: Path) -> Path:
    """Return the folder of the one store that a user means.

    Args:
        name: a path, or the beginning of a key.
        root: where keys are looked for.

    Raises:
        SepoError: no store, or several; names them.
    """
    if Path(name, "manifest.json").is_file():
        return Path(name).absolute()
    there = stored(root)
    found = [path for path in there if name and path.name.startswith(name.lower())]
    if len(found) == 1:
        return found[0]
    if found:
        raise SepoError(f"'{name}' begins the keys of {len(found)} stores in {root} ({_keys(found)}); give more of it.")
    among = f"its stores: {_keys(there)}" if there else "it has none"
    raise SepoError(
        f"'{name}' is neither the folder of a score store nor the beginning of a key in {root} ({among}); `sepo scores "
        "ls` lists them, --dir names another root."
    )


def write_names(root: Path, key: str, names: Mapping[str, str]) -> None:
    """Note what people call the models and the data of a store, outside its folder, which holds content only.

    The last run that used a store wins. A note that cannot be written is left out: nothing depends on it.
    """
    path = root / _NAMES / f"{key}.json"
    data = canonical_json(dict(names), name="names") + b"\n"
    with suppress(SepoError):
        if read_if_there(path) != data:
            make_folder(path.parent)
            replace_durably(path=path, data=data)


def read_names(root: Path, key: str) -> dict[str, str]:
    """Return what was noted with :func:`write_names`; empty where nothing readable is there."""
    try:
        found = json.loads(read_if_there(root / _NAMES / f"{key}.json") or b"{}")
    except (SepoError, ValueError, RecursionError):
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def disk_size(path: Path) -> int:
    """Bytes of a store's files."""
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file())


def remove_store(path: Path) -> None:
    """Remove a store. It disappears at once; a reader that has mapped its files keeps them.

    Args:
        path: ``<root>/<key>``.

    Raises:
        SepoError: another process is filling it, or the disk refuses.
    """
    root, key = path.parent, path.name
    locks = root / ".locks" / key
    with locked(locks / MANIFEST_LOCK, wait=False) as held:
        if not held or not users_gone(locks):
            raise SepoError(
                f"another process is filling the score store {path}; wait for it to end, or end it, then remove the "
                "store."
            )
        gone = root / f".removed-{key}-{secrets.token_hex(4)}"
        try:
            os.rename(path, gone)
            shutil.rmtree(gone)
            (root / _NAMES / f"{key}.json").unlink(missing_ok=True)
        except OSError as error:
            raise SepoError(
                f"cannot remove {error.filename or path}: {error.strerror}; remove it as the owner of its files."
            ) from error


def _keys(paths: list[Path]) -> str:
    shown = ", ".join(path.name[:12] for path in paths[:_LISTED])
    return shown if len(paths) <= _LISTED else f"{shown} and {len(paths) - _LISTED} more"
