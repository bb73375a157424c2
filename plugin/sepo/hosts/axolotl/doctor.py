"""Checks of `sepo doctor` for Axolotl: the contract, and whether the plugin is found."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from importlib.metadata import entry_points

from sepo.errors import SepoError
from sepo.hosts.axolotl.contract import CONTRACT
from sepo.hosts.contract import Finding, check
from sepo.installation import AXOLOTL, install_command

_GROUP, _NAME = "axolotl.plugins", "sepo"
_PLUGIN = "sepo.hosts.axolotl.SePOPlugin"


def contract_findings() -> Iterator[Finding]:
    """Check that the installed Axolotl fulfills the contract."""
    os.environ.setdefault("AXOLOTL_DO_NOT_TRACK", "1")  # importing it for a check is not usage to report
    try:
        yield from check(CONTRACT, expected="Axolotl 0.19 or 0.21")
    except (ImportError, RuntimeError, OSError) as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        command = install_command(AXOLOTL.name)
        yield Finding(False, f"Axolotl cannot be imported ({type(error).__name__}: {reason}); run: {command}")


def plugin_findings() -> Iterator[Finding]:
    """Check that the plugin can be imported, and report how a config loads it."""
    try:
        importlib.import_module("sepo.hosts.axolotl.plugin").load_modules()
    except (ImportError, RuntimeError, OSError, SepoError) as error:
        yield Finding(False, f"{_PLUGIN} cannot be imported ({error}); run: {install_command(AXOLOTL.name)}")
        return
    yield Finding(True, f"plugins: [{_PLUGIN}] can be imported")
    if entry_points(group=_GROUP, name=_NAME):
        yield Finding(
            True, f"entry point {_GROUP}: Axolotl 0.21 or later finds the plugin without plugins: in a config"
        )
    else:
        yield Finding(True, f"no entry point {_GROUP} (sepo is not installed): every config must list the plugin")
