"""Tiny models for all tests, and Axolotl's `train` in this process, because its import takes most of a run's time."""

import importlib.util
import json
import os
import sys

os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"
os.environ["CI"] = "1"
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest

from tests.support import axo


def pytest_configure(config):
    if importlib.util.find_spec("axolotl") is None:
        raise pytest.UsageError(
            "axolotl is not installed here: run `make test-axolotl`, which has an environment for it"
        )
    # Output of packages during import would follow pytest's last line.
    config.pluginmanager.getplugin("capturemanager").read_global_capture()


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """Directory with tiny models `base`, `oracle` and `policy`, rows `pairs.jsonl`, and `pandalm.jsonl` with real rows
    if the shared data is available."""
    from tests.support import tiny

    folder = axo.world(tmp_path_factory.mktemp("world"))
    real = axo.SHARED / "data" / "pandalm_pairs.json"
    rows = json.loads(real.read_text())[:40] if real.is_file() else tiny.pairs(24)
    axo.save_rows(folder / "pandalm.jsonl", axo.messages(rows))
    return folder


@pytest.fixture(scope="session")
def plugin(root):
    """The plugin, given a config with a stage before `axolotl.core` is imported, as in a run."""
    from axolotl.integrations.base import PluginManager

    PluginManager.get_instance().register(axo.PLUGIN)
    made = PluginManager.get_instance().plugins[axo.PLUGIN]
    made.register(axo.config(root, root / "out", rl="minor_dpo"))
    import axolotl.core.trainers.dpo.args  # noqa: F401

    return made


@pytest.fixture(autouse=True)
def no_debug_log(monkeypatch):
    """Disable the host's copy of its output to a file, which replaces pytest's streams and deadlocks when it ends."""
    import axolotl.cli.config

    monkeypatch.setattr(axolotl.cli.config, "prepare_debug_log", lambda *args, **kwargs: None)


@pytest.fixture
def train(plugin, tmp_path, monkeypatch):
    """Return a function that trains a config as ``axolotl train`` does, in this process, and returns the trainer."""
    import axolotl.cli.train as cli
    import axolotl.train as host
    import transformers

    monkeypatch.setattr(sys, "argv", sys.argv[:1])
    made = []
    build = host.setup_trainer

    def remember(*args, **kwargs):
        made.append(build(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(host, "setup_trainer", remember)

    def run(config):
        made.clear()
        transformers.set_seed(0)  # as in a new process: the host creates adapters before it sets its seed
        cli.do_cli(config=str(axo.write(config, tmp_path / "config.yaml")))
        return made[-1]

    return run


@pytest.fixture
def losses():
    """Return a function that returns the losses that a trainer logged, by step."""
    return lambda trainer: [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture
def loaded(root, plugin, tmp_path):
    """Return a function that loads a config for rows in a file, and returns it with the resolved settings."""
    from axolotl.cli.config import load_cfg
    from axolotl.integrations.base import PluginManager

    def load(rows, block, kind="chat_template.default", *, entry=(), **more):
        path = axo.save_rows(tmp_path / "rows.jsonl", rows)
        made = axo.config(
            root, tmp_path / "out", rl="sepo", datasets=[{**axo.rows_at(path), "type": kind, **dict(entry)}],
            shuffle_merged_datasets=False, sepo={"token_scores_dir": str(tmp_path / "scores"), **block}, **more,
        )  # fmt: skip
        made["dataset_prepared_path"] = str(tmp_path / f"prepared-{len(list(tmp_path.iterdir()))}")
        cfg = load_cfg(str(axo.write(made, tmp_path / "config.yaml")))
        # A config creates new plugin instances.
        return cfg, PluginManager.get_instance().plugins[axo.PLUGIN].resolved.settings

    return load


@pytest.fixture
def prepared(loaded):
    """Return a function that prepares a run's rows for training, in the order of the file."""
    from sepo.hosts.axolotl.data import load_pairs

    def make(rows, block, *args, **more):
        cfg, settings = loaded(rows, block, *args, **more)
        return load_pairs(cfg, settings, preprocess=False)[:2]

    return make


@pytest.fixture(scope="session")
def words(root):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(root / "policy")
