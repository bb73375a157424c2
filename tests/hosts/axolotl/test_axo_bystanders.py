"""Runs without a sepo stage in an environment with the plugin: unchanged, even if the package cannot be imported."""

import json
import subprocess
import sys
from importlib import metadata

import pytest

from tests.support import axo

ENTRY_POINTS = not metadata.version("axolotl").startswith("0.19.")  # 0.19 does not read the group

STATE = """
import json, logging, sys
def print_state(*args):
    import axolotl.train, axolotl.utils.environment
    from axolotl.core.trainers.dpo.args import AxolotlDPOConfig
    from axolotl.integrations.base import PluginManager
    from axolotl.logging_config import AxolotlOrWarnErrorFilter
    from axolotl.utils.data import rl
    functions = [
        sys.excepthook, AxolotlOrWarnErrorFilter.filter, axolotl.train.setup_reference_model, rl.load_dpo,
        rl.generate_dataset_hash_from_config, axolotl.utils.environment.check_cuda_p2p_support,
    ]
    functions = [getattr(one, "func", one) for one in functions]
    cfg, trainer = args[0], args[1]
    print("STATE", json.dumps({
        "functions": [f"{one.__module__}.{one.__qualname__}" for one in functions],
        "fields": sorted(AxolotlDPOConfig.__dataclass_fields__),
        "config": sorted(map(str, dict(cfg).items())),
        "trainer": type(trainer).__module__,
        "rows": trainer.train_dataset.column_names,
        "loggers": [name for name in logging.root.manager.loggerDict if name.startswith("sepo")],
        "modules": sorted(name for name in sys.modules if name.partition(".")[0] == "sepo"),
    }))
"""
TRAIN = """
sys.argv = sys.argv[:1]
import axolotl.train
def execute_training(*args):
    print_state(*args)
axolotl.train.execute_training = execute_training
from axolotl.cli.train import do_cli
do_cli(config={config!r})
"""
BROKEN = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name in {names!r}:
            raise ImportError("a missing dependency of " + name)
sys.meta_path.insert(0, Broken())
"""
PARTS = ("sepo.recipe", "sepo.scoring", "sepo.training", "sepo.objectives", "sepo.forward", "sepo.runs")
LIGHT = {
    "sepo", "sepo.errors", "sepo.hosts", "sepo.hosts.axolotl", "sepo.hosts.axolotl.plugin", "sepo.hosts.axolotl.stage",
    "sepo.installation",
}  # fmt: skip


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """Directory with the metadata of an installation, which has the entry point."""
    folder = tmp_path_factory.mktemp("installed")
    info = folder / "sepo-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sepo\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[axolotl.plugins]\nsepo = sepo.hosts.axolotl:SePOPlugin\n")
    return folder


def run(config, folder, *, installed=None, broken=()):
    """Run a config up to its first step, in a new process, with the entry point if ``installed`` is given."""
    folder.mkdir(exist_ok=True)
    path = axo.write(config, folder / "config.yaml")
    code = (BROKEN.format(names=set(broken)) if broken else "") + STATE + TRAIN.format(config=str(path))
    env = axo.environment()
    if installed is not None:
        env["PYTHONPATH"] = f"{installed}:{env['PYTHONPATH']}"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, check=False
    )


def state(done):
    lines = [line for line in done.stdout.splitlines() if line.startswith("STATE ")]
    assert len(lines) == 1, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(lines[0].removeprefix("STATE "))


@pytest.fixture(scope="module")
def plain(root, tmp_path_factory):
    """A config of plain DPO, and its state in an environment without the plugin."""
    folder = tmp_path_factory.mktemp("plain")
    config = axo.config(root, folder / "out", rl="dpo", plugins=None)
    found = state(run(config, folder))
    assert not found.pop("modules")
    return config, found


@pytest.mark.parametrize("broken", [(), PARTS], ids=["whole", "broken"])
@pytest.mark.parametrize("way", ["entry point", "plugins"])
def test_a_run_without_a_stage_is_unchanged(plain, installed, tmp_path, way, broken):
    config, expected = plain
    more = {"plugins": [axo.PLUGIN]} if way == "plugins" else {}
    found = state(run({**config, **more}, tmp_path / "run", installed=installed, broken=broken))
    if way == "plugins":
        found["config"] = [item for item in found["config"] if not item.startswith("('plugins'")]
    modules = found.pop("modules")
    assert _without_path(found) == _without_path(expected)
    assert set(modules) <= LIGHT
    assert bool(modules) is (ENTRY_POINTS or way == "plugins")


def _without_path(found):
    return {**found, "config": [item for item in found["config"] if "axolotl_config_path" not in item]}


@pytest.mark.parametrize(
    "words", [{"rl": "minor_dpo"}, {"rl": "dpo", "sepo": {"stage": "minor_dpo"}}], ids=["rl", "block"]
)
@pytest.mark.parametrize("way", ["plugins", *(["entry point"] if ENTRY_POINTS else [])])
def test_a_stage_whose_package_cannot_be_imported_ends_in_one_line(root, installed, tmp_path, way, words):
    more = {} if way == "plugins" else {"plugins": None}
    config = axo.config(root, tmp_path / "out", **words, **more)
    done = run(config, tmp_path / "run", installed=installed, broken=["sepo.scoring"])
    assert done.returncode != 0
    assert "STATE" not in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("sepo: error: ")]
    assert "sepo cannot be imported (ImportError: a missing dependency of sepo.scoring); in an env" in line
    assert "Traceback" not in done.stderr


def test_a_stage_runs_by_the_entry_point_alone(root, installed, tmp_path):
    """0.19 has no entry points, and refuses the value of `rl`."""
    config = axo.config(root, tmp_path / "out", rl="minor_dpo", plugins=None)
    done = run(config, tmp_path / "run", installed=installed)
    if not ENTRY_POINTS:
        assert done.returncode != 0
        assert "STATE" not in done.stdout
        return
    found = state(done)
    assert found["trainer"] == "sepo.hosts.axolotl.trainer"
    assert "sepo" in found["fields"]
