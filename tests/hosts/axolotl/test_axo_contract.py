"""Contract with Axolotl and TRL, by name and parameters; plugin/sepo/hosts/PATCHES.md gives the reasons."""

import inspect
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from sepo.hosts.axolotl.contract import CONTRACT
from sepo.hosts.contract import concerning, gap
from tests.support import axo

ROOT = Path(__file__).parents[3]
NAMES = {str(entry) for entry in CONTRACT}
PATCHES = (ROOT / "plugin" / "sepo" / "hosts" / "PATCHES.md").read_text()


def test_the_installed_version_is_a_tested_one():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["axolotl"]
    assert "axolotl>=0.19,!=0.20.*,<0.22" in extra
    versions = {name: ".".join(metadata.version(name).split(".")[:2]) for name in ("axolotl", "trl")}
    assert versions in ({"axolotl": "0.19", "trl": "1.9"}, {"axolotl": "0.21", "trl": "1.14"})
    assert "## Axolotl 0.19 and 0.21" in PATCHES
    assert "## TRL 1.9 and 1.14" in PATCHES


def test_the_entry_point_of_later_versions_is_the_plugin(plugin):
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["axolotl.plugins"]
    assert points == {"sepo": axo.PLUGIN[::-1].replace(".", ":", 1)[::-1]}
    assert type(plugin).__name__ == "SePOPlugin"


def parameters(function):
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize("entry", concerning(CONTRACT), ids=str)
def test_the_contract_is_fulfilled(plugin, entry):
    assert gap(entry) is None


def test_the_hosts_log_filter_is_the_one_that_is_patched(plugin):
    from axolotl.logging_config import AxolotlLogger, AxolotlOrWarnErrorFilter

    assert parameters(AxolotlOrWarnErrorFilter.filter) == ["self", "record"]
    assert AxolotlOrWarnErrorFilter().axolotl_level == 20
    assert [type(one) for one in AxolotlLogger("sepo.x").filters] == [AxolotlOrWarnErrorFilter]


def test_the_plugins_hooks_have_the_hosts_signatures(plugin):
    from axolotl.integrations.base import BasePlugin

    for name, function in vars(type(plugin)).items():
        if inspect.isfunction(function) and not name.startswith("_"):
            assert parameters(getattr(BasePlugin, name)) == parameters(function), name
            assert f"axolotl.integrations.base.BasePlugin.{name}" in NAMES, name


def test_the_overridden_trainer_methods_have_the_expected_signatures(plugin):
    from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer

    expected = {
        "_prepare_dataset": ["self", "dataset", "processing_class", "args", "dataset_name"],
        "_precompute_ref_logps": ["self", "dataset", "name", "batch_size"],
        "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
        "prediction_step": ["self", "model", "inputs", "prediction_loss_only", "ignore_keys"],
        "log": ["self", "logs", "start_time"],
    }
    for name, found in expected.items():
        assert parameters(getattr(AxolotlDPOTrainer, name)) == found, name
        assert f"trl.DPOTrainer.{name}" in NAMES, name
    source = inspect.getsource(AxolotlDPOTrainer._prepare_dataset)
    assert all(part.startswith("_tokenizer") for part in source.split("self.")[1:])


def test_the_hosts_step_adds_nothing_but_collecting(plugin):
    """The subclass skips the host's method, and with it anything else that it might do; 0.21 has no such method."""
    from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer

    from sepo.hosts.axolotl.trainer import PreferenceTrainer

    assert PreferenceTrainer.training_step is not AxolotlDPOTrainer.training_step
    step = vars(AxolotlDPOTrainer).get("training_step")
    lines = [] if step is None else inspect.getsource(step).splitlines()
    body = lines[[line.strip() for line in lines].index(") -> torch.Tensor:") + 1 :] if lines else []
    assert [line.strip() for line in body] in (
        [],
        [
            "loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)",
            "gc.collect()",
            "torch.cuda.empty_cache()",
            "return loss",
        ],
    )


def test_the_hosts_enum_has_no_sepo_stage(plugin):
    """So that a config with `rl: sepo` fails if the plugin is missing."""
    from axolotl.utils.schemas.enums import RLType

    assert not {item.value for item in RLType} & set(axo.STAGES)


def test_the_host_loads_no_adapter_into_a_dpo_run(plugin):
    """The reason why `lora_model_dir` is refused."""
    from axolotl.loaders.adapter import load_lora

    source = inspect.getsource(load_lora)
    assert source.index("if config_only:") < source.index("if cfg.lora_model_dir:")
