"""Results of parts of a study, kept on disk so that an interrupted run continues."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from sepo.errors import SepoError


class Kept:
    """A directory of files, one for each part, all made with the same settings.

    Args:
        folder: the directory.
        settings: what the parts depend on.

    Raises:
        SepoError: if the directory has parts made with other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        mark, text = folder / "settings.json", json.dumps(settings, indent=1, sort_keys=True)
        if not mark.exists():
            mark.write_text(text, encoding="utf-8")
        elif mark.read_text(encoding="utf-8") != text:
            raise SepoError(f"{folder} has results made with other settings: name another --work, or remove it.")

    def part(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a part from its file, or make it and write it."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            unfinished = path.with_suffix(".unfinished")
            unfinished.write_text(json.dumps(make()), encoding="utf-8")
            unfinished.replace(path)
        return json.loads(path.read_text(encoding="utf-8"))

    def tensor(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """Return a tensor from its file, or make it and write it."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            unfinished = path.with_suffix(".unfinished")
            save_file({"value": make().contiguous()}, unfinished)
            unfinished.replace(path)
        return load_file(path)["value"]
