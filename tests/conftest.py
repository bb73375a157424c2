"""Shared by all tests: a quiet, offline process, and tiny models that are created once per session."""

import importlib.util
import logging
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("LLAMAFACTORY_VERBOSITY", "INFO")

import hypothesis
import pytest

# The duration of an example depends on the load of the machine.
hypothesis.settings.register_profile("sepo", deadline=None)
hypothesis.settings.load_profile("sepo")

# The two hosts cannot share an environment; in Axolotl's only its own tests are collected.
_HERE = Path(__file__).parent
_HOSTS = _HERE / "hosts"
_OTHER_HOST = importlib.util.find_spec("llamafactory") is None and importlib.util.find_spec("axolotl") is not None
if _OTHER_HOST:
    _OWN = ("__init__.py", "conftest.py", "hosts")
    collect_ignore = [str(entry) for entry in _HERE.iterdir() if entry.name not in _OWN]
    collect_ignore.append(str(_HOSTS / "llamafactory"))
else:
    collect_ignore = [str(_HOSTS / "axolotl")]


def pytest_configure(config):
    if _OTHER_HOST:
        config.addinivalue_line("filterwarnings", "ignore")  # from its pinned packages


# Files of ten CPU seconds and more, the longest first, so that two workers with a shared queue finish together.
LONG = (
    "test_engines.py", "test_distributed.py", "test_plan.py", "test_board_browser.py", "test_trainer.py",
    "test_secrets.py", "test_rto.py", "test_sampled_pairs.py", "test_train.py", "test_score.py",
    "test_page_in_browser.py", "test_adapters.py", "test_sharing.py", "test_compare.py", "test_broken_packages.py",
    "test_pipeline.py", "test_pipeline_pairs.py", "test_enable.py", "test_bench.py", "test_grpo_step.py",
    "test_own_scorer.py", "test_head_memory.py",
    "test_demo_model.py", "test_stages.py", "test_store_processes.py", "test_step_bytes.py", "test_readme.py",
    "test_projection.py", "test_pairs_and_rto.py", "test_stability.py", "test_demo_pairs.py", "test_head.py",
    "test_examples.py", "test_studies.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Run long files first; keep the order of the others and of the tests within a file."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Return a directory with tiny models `base`, `oracle` (its perturbed copy), `policy` and the data set `data`."""
    from tests.support import tiny

    root = tmp_path_factory.mktemp("world")
    tiny.save_model(root / "base", seed=0)
    tiny.save_model(root / "oracle", seed=1, noise_over=root / "base")
    tiny.save_model(root / "policy", seed=2)
    tiny.save_pairs(root / "data")
    return root


@pytest.fixture
def exact_norms(monkeypatch):
    """Patch the norm of the tiny models: its float32 rounding would hide differences below 1e-7."""
    from tests.support import tiny

    monkeypatch.setattr(tiny.LlamaRMSNorm, "forward", tiny.exact_norm)


@pytest.fixture(autouse=True)
def _own_logger():
    """Restore sepo's logger, which commands called in this process configure like a program."""
    logger = logging.getLogger("sepo")
    before = logger.level, logger.propagate, logger.disabled, list(logger.handlers)
    yield
    logger.setLevel(before[0])
    logger.propagate, logger.disabled, logger.handlers[:] = before[1:]


@pytest.fixture
def browser(tmp_path):
    """Return a headless Chromium with an empty profile; see ``browser.Browser``."""
    from tests.support.browser import open_browser

    with open_browser(tmp_path / "chromium") as opened:
        yield opened


@pytest.fixture
def small_disk(tmp_path):
    """Return a function that mounts a file system of a size in KiB, and one that enlarges it."""
    from tests.support.small_disk import SmallDisk

    disk = SmallDisk(tmp_path / "small")
    yield disk.mount, disk.enlarge
    disk.close()
