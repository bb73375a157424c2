"""Import hook of `sepo enable`: registers sepo's stages when the host's modules are imported.

It runs at interpreter start and imports neither torch nor the host; the cost for an interpreter that never imports
``llamafactory`` is one entry in ``sys.meta_path``.
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
"""By host module: the module whose ``register`` function is called with it."""


class _RegisteringLoader(importlib.abc.Loader):
    """Loader that executes a module with its original loader and then registers sepo's stages in it."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module with its original loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module, then register the stages."""
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
    """Insert the finder at the front of ``sys.meta_path``. Idempotent."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


install()
