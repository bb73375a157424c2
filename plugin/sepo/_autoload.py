"""Import hook of `sepo enable`: adds sepo's stages to the host's modules when these are imported.

It runs at interpreter start and imports neither torch nor the host; the cost for an interpreter that never imports
``llamafactory`` is one entry in ``sys.meta_path``. A run of a stage of the host imports no module that could fail: the
stages are registered when a run names another stage.
"""

from __future__ import annotations

import functools
import importlib.abc
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"


def _register_with_runs(tuner: Any) -> None:
    """Make ``run_exp`` register the stages before a run whose stage is not the host's."""
    host_run = tuner.run_exp

    @functools.wraps(host_run)
    def run_exp(args: Any = None, callbacks: Any = None) -> None:
        stage = _other_stage(tuner.read_args(args))
        if stage is not None:
            _register(tuner, stage)
        host_run(args, callbacks)

    tuner.run_exp = run_exp
    tuner._sepo_enabled = True


def _other_stage(given: Any) -> str | None:
    """Return the stage of a recipe if it is not the host's, else None.

    Also None if this package cannot read the recipe: the host refuses unknown stages itself.
    """
    try:
        from sepo.recipe.given import stage_of
        from sepo.recipe.stage_names import HOST_STAGES
    except Exception:  # a damaged installation; see above
        return None
    stage = stage_of(given)
    return None if stage in HOST_STAGES else stage


def _register(tuner: Any, stage: str) -> None:
    try:
        from sepo.hosts.llamafactory.registration import register
    except Exception as error:  # incompatible packages raise exceptions of any type during import
        from sepo.errors import SepoError
        from sepo.hosts.errors import print_error

        print_error(SepoError(f"stage is {stage}, and sepo cannot be imported ({_reason(error)}); run: sepo doctor"))
        raise SystemExit(2) from error
    register(tuner)


def _register_with_board(interface: Any) -> None:
    """Add the stages to LLaMA Board, which lists them before a visitor selects one; report a failed import."""
    try:
        from sepo.hosts.llamafactory.board.patch import register
    except Exception as error:  # as above
        reason = f"sepo cannot be imported ({_reason(error)})"
        print(f"sepo: this LLaMA Board does not list sepo's stages: {reason}; run: sepo doctor", file=sys.stderr)
        return
    register(interface)


_HOOKS: dict[str, Callable[[Any], None]] = {
    "llamafactory.train.tuner": _register_with_runs,
    "llamafactory.webui.interface": _register_with_board,
}
"""Function to call with each of the host's modules after it was executed."""


class _RegisteringLoader(importlib.abc.Loader):
    """Loader that executes a module with its original loader and then calls its hook."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module with its original loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module, then call its hook."""
        self._loader.exec_module(module)
        _HOOKS[module.__name__](module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _HOOKS:
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
