"""`sepo enable` and `sepo disable`: write and remove one `.pth` file in the environment."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from sepo.errors import SepoError
from sepo.files import write_whole

FILE_NAME = "sepo_llamafactory.pth"
# The interpreter must still start after sepo was uninstalled, so the line checks for the package before importing it.
LINE = "import importlib.util as u; u.find_spec('sepo') and __import__('sepo._autoload')\n"


def pth_file() -> Path:
    """Return the path of this environment's `.pth` file, which need not exist."""
    return Path(sysconfig.get_path("purelib")) / FILE_NAME


def enabled() -> bool:
    """Return whether plain `llamafactory-cli` has sepo's stages in this environment."""
    path = pth_file()
    return path.is_file() and path.read_text(encoding="utf-8") == LINE


def enable() -> Path:
    """Make every interpreter of this environment register sepo's stages with LLaMA-Factory.

    Returns:
        The file that was written.

    Raises:
        SepoError: the environment cannot be written to.
    """
    path = pth_file()
    try:
        write_whole(path, LINE)
    except OSError as error:
        raise SepoError(
            f"cannot write {path} ({error.strerror}); run `sepo enable` as the owner of this environment, or use "
            "`sepo train`, which works without it."
        ) from error
    return path


def disable() -> bool:
    """Undo `enable`.

    Returns:
        Whether the file existed.

    Raises:
        SepoError: the file cannot be removed.
    """
    path = pth_file()
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise SepoError(
            f"cannot remove {path} ({error.strerror}); remove it as the owner of the environment."
        ) from error
    return True
