"""Run a command of sepo in a process that uses a hub of the tests: ``hub_worker.py ENDPOINT CACHE TIMEOUT words``."""

import sys
from pathlib import Path

import pytest

from tests.support import hub as hubs

if __name__ == "__main__":
    endpoint, cache, timeout, *words = sys.argv[1:]
    hubs.use(endpoint, pytest.MonkeyPatch(), Path(cache))
    from huggingface_hub import constants

    constants.HF_HUB_ETAG_TIMEOUT = float(timeout)
    from sepo.cli import main

    sys.exit(main(words))
