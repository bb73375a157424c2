"""Entry point of ``python -m sepo``."""

import sys

from sepo.cli import main

if __name__ == "__main__":
    sys.exit(main())
