"""`sepo enable` and `sepo disable`: one `.pth` file in the environment, and nothing else."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from sepo.errors import SepoError
from sepo.files import write_whole

FILE_NAME = "sepo_llamafactory.pth"
# An interpreter start must survive an uninstalled sepo, so the line asks before it imports.
LINE = "import importlib.util as u; u.find_spec('sepo') and __import__('sepo._autoload')\n"


def pth_file() -> Path:
    """Where the file of this environment is, or would be."""
    return Path(sysconfig.get_path("purelib")) / FILE_NAME


def enabled() -> bool:
    """Whether plain `llamafactory-cli` knows our stages in this environment."""
    path = pth_file()
    return path.is_file() and path.read_text(encoding="utf-8") == LINE


def enable() -> Path:
    """Make every interpreter of this environment register our stages with LLaMA-Factory.

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
            f"cannot write {path} ({error.strerror}); `sepo train` works without it, or run `sepo enable` as the user "
            "who owns this environment."
        ) from error
    return path


def disable() -> bool:
    """Undo `enable`.

    Returns:
        Whether there was anything to undo.

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
