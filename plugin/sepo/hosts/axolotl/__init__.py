"""The plugin for Axolotl: ``plugins: [sepo.hosts.axolotl.SePOPlugin]``.

Axolotl 0.21 also loads it by its entry point, into every run of the environment. Importing it therefore has no effect
on a run, and imports next to nothing of this package: the plugin loads the rest if the config names a sepo stage.

Axolotl 0.19 logs a plugin that raises ``ImportError`` and continues without it, which would train plain DPO. A failed
import is therefore raised as another error.
"""

from sepo.errors import SepoError
from sepo.installation import AXOLOTL, install_command

try:
    from sepo.hosts.axolotl.plugin import SePOPlugin
except ImportError as error:
    raise SepoError(
        f"the plugin for Axolotl cannot be imported ({error}), and without it the run would train plain DPO; in an "
        f"environment without LLaMA-Factory run: {install_command(AXOLOTL.name)}"
    ) from error

__all__ = ["SePOPlugin"]
