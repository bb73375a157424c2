"""`sepo enable`, `sepo disable` and `sepo webui`: the host's own commands with sepo's stages."""

from __future__ import annotations

import argparse


def run_enable(options: argparse.Namespace) -> int:
    """Register sepo's stages in every interpreter of this environment.

    Returns:
        The exit status.

    Raises:
        SepoError: the host is not installed, or the environment cannot be written.
    """
    from sepo.hosts.llamafactory.enable import enable
    from sepo.hosts.llamafactory.recipe import require_host

    require_host("enable")
    print(f"enabled: {enable()}\n`llamafactory-cli train` and `webui` now run sepo's stages; `sepo disable` undoes it.")
    return 0


def run_disable(options: argparse.Namespace) -> int:
    """Undo ``run_enable``.

    Returns:
        The exit status.
    """
    from sepo.hosts.llamafactory.enable import disable, pth_file

    print(
        f"disabled: removed {pth_file()}" if disable() else "nothing to undo: sepo is not enabled in this environment"
    )
    return 0


def add_webui(parser: argparse.ArgumentParser) -> None:
    """Add an epilog with the environment variables of `sepo webui`."""
    parser.epilog = (
        "As for `llamafactory-cli webui`, GRADIO_SERVER_NAME, GRADIO_SERVER_PORT, GRADIO_SHARE, GRADIO_ROOT_PATH and "
        "the other variables of gradio apply. After `sepo enable`, the host's own command serves the same page."
    )


def run_webui(options: argparse.Namespace) -> int:
    """Serve LLaMA Board.

    Returns:
        The exit status.

    Raises:
        SepoError: the host or gradio is not installed, or the port is taken.
    """
    from sepo.hosts.llamafactory.launcher import webui

    return webui()
