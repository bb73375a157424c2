"""Checks of `sepo doctor` for LLaMA-Factory: the names that are relied on, LLaMA Board and activation."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from sepo.hosts.contract import Finding, check
from sepo.hosts.llamafactory.contract import CONTRACT
from sepo.hosts.llamafactory.enable import enabled, pth_file
from sepo.hosts.llamafactory.facts import SUPPORTED
from sepo.installation import LLAMAFACTORY, install_command

_IS_REGISTERED = """
import sys
import llamafactory.train.tuner, llamafactory.webui.interface
import sepo.hosts.llamafactory.registration
enabled = hasattr(llamafactory.train.tuner, "_sepo_enabled")
sys.exit(not (enabled and hasattr(llamafactory.webui.interface, "_sepo_registered")))
"""


def contract_findings() -> Iterator[Finding]:
    """Check that the host has the names that are relied on, those of its board included."""
    try:
        yield from check(CONTRACT, expected=f"{SUPPORTED} with tested versions of its packages (docs/hosts.md)")
        yield from board_findings()
    except (ImportError, RuntimeError, OSError) as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        command = install_command(LLAMAFACTORY.name)
        yield Finding(False, f"LLaMA-Factory cannot be imported ({type(error).__name__}: {reason}); run: {command}")


def board_findings() -> Iterator[Finding]:
    """Check that LLaMA Board lists the stages."""
    from llamafactory.extras.packages import is_gradio_available

    from sepo.hosts.llamafactory.board.patch import board_gaps, filling_gaps
    from sepo.recipe.stage_names import available_stages

    if not is_gradio_available():
        yield Finding(True, "LLaMA Board: not available, gradio is not installed")
        return
    gaps = board_gaps()
    for gap in gaps:
        yield Finding(False, f"LLaMA Board does not list sepo's stages: {gap}; use {SUPPORTED}")
    if gaps:
        return
    yield Finding(True, f"LLaMA Board: `sepo webui` lists {', '.join(available_stages())}")
    try:
        lacking = filling_gaps()
    except Exception as error:  # any of the host's or gradio's
        yield Finding(False, f"LLaMA Board cannot be built ({type(error).__name__}: {error}); use {SUPPORTED}")
        return
    for gap in lacking:
        yield Finding(False, f"LLaMA Board does not fill in the keys of a stage: {gap}; use {SUPPORTED}")


def activation_findings() -> Iterator[Finding]:
    """Check that plain `llamafactory-cli` has the stages, if they are enabled."""
    path = pth_file()
    if not path.exists():
        yield Finding(True, "not enabled: `sepo train` has sepo's stages, plain `llamafactory-cli train` does not")
        return
    if not enabled():
        yield Finding(False, f"{path} differs from the file that this version writes; run: sepo enable")
        return
    quiet = None
    if not _registered_here():  # the stages were enabled meanwhile, or something is wrong
        quiet = subprocess.run([sys.executable, "-c", _IS_REGISTERED], capture_output=True, text=True, check=False)
    if quiet is None or quiet.returncode == 0:
        yield Finding(
            True, f"enabled in this environment ({path}): `llamafactory-cli train` and `webui` have sepo's stages"
        )
    else:
        last = (quiet.stderr.strip().splitlines() or ["no message"])[-1]
        yield Finding(False, f"{path} exists, but a new interpreter does not register sepo's stages ({last})")


def _registered_here() -> bool:
    """Return whether this interpreter has registered sepo's stages by the import hook, when it imported the host."""
    tuner, interface = (sys.modules.get(f"llamafactory.{name}") for name in ("train.tuner", "webui.interface"))
    return hasattr(tuner, "_sepo_enabled") and hasattr(interface, "_sepo_registered")
