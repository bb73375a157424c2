"""The plugin for Axolotl: ``plugins: [sepo.hosts.axolotl.SePOPlugin]``.

Axolotl 0.19 logs a plugin that raises ``ImportError`` and continues without it, which would train plain DPO. A failed
import is therefore raised as another error.
"""

from sepo.errors import SepoError
from sepo.hosts.axolotl.errors import print_errors_without_traceback
from sepo.installation import AXOLOTL, install_command

print_errors_without_traceback()
try:
    from sepo.hosts.axolotl.plugin import SePOPlugin
except ImportError as error:
    raise SepoError(
        f"the plugin for Axolotl cannot be imported ({error}), and without it the run would train plain DPO; in an "
        f"environment without LLaMA-Factory run: {install_command(AXOLOTL.name)}"
    ) from error

__all__ = ["SePOPlugin"]
