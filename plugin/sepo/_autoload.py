"""What `sepo enable` runs at interpreter start: registers our stages when the host's modules are imported, not before.

Nothing here imports torch or the host; an interpreter that never imports ``llamafactory`` pays for one entry in
``sys.meta_path``.
"""

from __future__ import annotations

import importlib
import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_REGISTRARS = {
    "llamafactory.train.tuner": "sepo.hosts.llamafactory.registration",
    "llamafactory.webui.interface": "sepo.hosts.llamafactory.board.patch",
}
"""By the host's module: ours, whose ``register`` is called with it."""


class _RegisteringLoader(importlib.abc.Loader):
    """Executes the module as its own loader does, then registers our stages in it."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Leave the module's creation to its own loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module, then register."""
        self._loader.exec_module(module)
        importlib.import_module(_REGISTRARS[module.__name__]).register(module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _REGISTRARS:
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _RegisteringLoader(spec.loader)
                return spec
        return None


def install() -> None:
    """Put the finder in front, once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


install()
