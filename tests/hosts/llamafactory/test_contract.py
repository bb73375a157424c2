"""Names that the plugin relies on beyond the host's public API (see plugin/sepo/hosts/PATCHES.md)."""

import ast
import contextlib
import logging
import os
import pickle
import re
import runpy
import sys
import types
from pathlib import Path

import pytest

import sepo.hosts
from sepo.hosts.contract import Entry, check, concerning, gap
from sepo.hosts.llamafactory.contract import CONTRACT
from sepo.hosts.llamafactory.doctor import contract_findings
from sepo.hosts.llamafactory.facts import has_ray_worker
from tests.support.recipes import run

HOSTS = Path(sepo.hosts.__file__).parent
LEDGER = (HOSTS / "PATCHES.md").read_text()
# The package for the other host cannot be imported here, but its contract is plain data.
ENTRIES = {str(entry) for entry in (*CONTRACT, *runpy.run_path(str(HOSTS / "axolotl" / "contract.py"))["CONTRACT"])}
PACKAGES = (
    "llamafactory",
    "axolotl",
    "trl",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "huggingface_hub",
    "torch",
    "gradio",
    "sys",
)
NO_NAMES = {
    ".pth", "SIGABRT", "PATH", "sys.argv", "CUDA_VISIBLE_DEVICES", "FSDP_CPU_RAM_EFFICIENT_LOADING", "forward",
    "eager_attention_forward",
}  # fmt: skip
"""Code spans in the ledger's first column that are not names of a package."""


def test_the_host_has_the_names_that_are_relied_on():
    assert [finding.text for finding in contract_findings() if not finding.good] == []


def test_ledger_and_contracts_have_the_same_names():
    rows = re.findall(r"^\| (.*?) \|", LEDGER, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)} - NO_NAMES
    assert named == ENTRIES
    assert {name.split(".")[0] for name in named} <= set(PACKAGES)


def test_every_row_of_the_ledger_is_whole():
    rows = [line for line in LEDGER.splitlines() if line.startswith("| ") and not line.startswith("| what |")]
    assert rows
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert len(cells) == 5, row
        assert all(cells), row


def is_private(module):
    return any(part.startswith("_") for part in module.split("."))


def covered(name):
    return any(entry == name or entry.startswith(f"{name}.") for entry in ENTRIES)


def sources():
    for path in sorted(HOSTS.parent.rglob("*.py")):
        yield path, ast.parse(path.read_text())


def test_every_name_that_is_taken_from_a_host_is_in_a_contract():
    """No module of a host is public; of the other packages, modules with an underscore are private."""
    taken = {
        f"{node.module}.{alias.name}": path.name
        for path, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 0
        for alias in node.names
        if (root := node.module.split(".")[0]) in ("llamafactory", "axolotl", "trl")
        or (root in PACKAGES and is_private(node.module))
    }
    assert len(taken) > 40
    assert {name: path for name, path in taken.items() if not covered(name)} == {}


def attributes(tree):
    """Yield the names of attributes in a module, and whether it assigns them to ``self``.

    These are attribute expressions, strings in ``getattr`` and similar functions, and string constants of the module,
    which may be used in these.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, True
        elif isinstance(node, ast.Attribute):
            of_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            yield node.attr, of_self and isinstance(node.ctx, ast.Store)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) in ("getattr", "hasattr", "setattr"):
            yield from ((text.value, False) for text in node.args[1:2] if isinstance(text, ast.Constant))
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value, False


def test_every_private_attribute_of_others_is_in_a_contract():
    """An attribute with an underscore that is not defined in this package belongs to another package."""
    found = [(name, own, path.name) for path, tree in sources() for name, own in attributes(tree)]
    private = [item for item in found if re.fullmatch(r"_[a-z]\w*", item[0]) and not item[0].startswith("_sepo_")]
    own = {name for name, own, _ in private if own}
    known = {entry.rpartition(".")[2] for entry in ENTRIES} | {
        "_asdict",
        "_exit",
    }  # of a named tuple; of os, documented
    others = {name: path for name, _, path in private if name not in own}
    assert "_stored_metrics" in others
    assert "_gradient_checkpointing_func" in others
    assert {name: path for name, path in others.items() if name not in known} == {}


class Changed:
    """Class without the names that are relied on."""

    rate: float

    def __init__(self, model):
        self.model = model

    def step(self, model):
        """Take a step; a text with self.named sets nothing."""

    def forward(self, *args, **kwargs):
        """Pass everything on."""


@pytest.fixture
def changed(monkeypatch):
    module = types.ModuleType("changed_host")
    module.Changed, module.step = Changed, Changed.step
    monkeypatch.setitem(sys.modules, "changed_host", module)


@pytest.mark.parametrize(
    ("entry", "missing"),
    [
        (Entry("changed_host", "Changed.step", ("model",)), None),
        (Entry("changed_host", "Changed.forward", ("model",)), None),
        (Entry("changed_host", "Changed.rate", on_instances=True), None),
        (Entry("changed_host", "Changed.named", on_instances=True), "changed_host.Changed.named is not an attribute"),
        (Entry("changed_host", "Changed.model", on_instances=True), None),
        (Entry("changed_host", "gone"), "changed_host.gone does not exist"),
        (
            Entry("no_such_host.train", "step"),
            "no_such_host.train.step does not exist (No module named 'no_such_host')",
        ),
        (Entry("changed_host", "Gone.step"), "changed_host.Gone.step does not exist"),
        (Entry("changed_host", "Changed.step", ("model", "inputs")), "changed_host.Changed.step does not take inputs"),
        (Entry("changed_host", "Changed.args", on_instances=True), "changed_host.Changed.args is not an attribute"),
    ],
)
def test_missing_names_are_found(changed, entry, missing):
    found = gap(entry)
    assert (found is None) == (missing is None)
    assert missing is None or found.startswith(missing)
    (finding,) = check([entry], expected="Host 1.0")
    assert finding.good == (missing is None)
    assert missing is None or finding.text.endswith("; use Host 1.0")


def test_a_name_concerns_the_versions_that_have_it(changed, monkeypatch):
    entries = [Entry("changed_host", "gone", versions="<2"), Entry("changed_host", "step", versions=">=2")]
    for version, concerned in (("1.9", "gone"), ("2.0", "step"), ("2.1.dev0", "step"), (None, "step")):
        monkeypatch.setattr("sepo.hosts.contract._version", {"changed_host": version}.get)
        assert [entry.path for entry in concerning(entries)] == [concerned]
        (finding,) = check(entries, expected="Host 2")
        assert finding.good == (concerned == "step")


def test_every_test_that_the_ledger_names_exists():
    root = Path(__file__).parents[3]
    named = set(re.findall(r"`(tests/[^`]+)`", LEDGER))
    assert named
    for reference in named:
        path, _, function = reference.partition("::")
        assert (root / path).is_file(), reference
        assert not function or f"def {function}(" in (root / path).read_text(), reference


def test_host_versions_in_the_ledger_are_those_of_the_extra():
    extra = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert "llamafactory>=0.9.5,<0.9.6" in extra
    assert "## LLaMA-Factory 0.9.4 and 0.9.5" in LEDGER


def test_facts_and_contract_agree_on_the_installed_host():
    from llamafactory.train import tuner

    concerned = {str(entry) for entry in concerning(CONTRACT)}
    of_class, of_function = (
        "llamafactory.train.tuner.Worker._training_function",
        "llamafactory.train.tuner.get_ray_trainer",
    )
    assert (of_class in concerned) == has_ray_worker(tuner)
    assert (of_function in concerned) == (not has_ray_worker(tuner))


def test_ray_worker_registers_in_its_own_process(monkeypatch):
    from llamafactory.train import tuner

    from sepo.hosts.llamafactory import registration

    started = []
    monkeypatch.setattr(tuner, "_sepo_registered", False, raising=False)
    monkeypatch.setattr(
        tuner, "Worker", type("HostWorker", (), {"__init__": lambda self: started.append(self)}), raising=False
    )
    for name in ("run_dpo", "get_train_args", "_training_function"):
        monkeypatch.setattr(tuner, name, getattr(tuner, name))
    monkeypatch.setenv("SEPO_RAY_WORKER", "")
    registration.RayWorker()
    assert tuner._sepo_registered
    assert tuner.Worker is registration.RayWorker
    assert len(started) == 1


@pytest.mark.host
def test_a_ray_function_registers_in_its_own_process(monkeypatch, tmp_path):
    """Ray pickles the function by name, for a process in which nothing is registered."""
    from llamafactory.train import tuner

    from sepo.hosts.llamafactory import registration

    given = []
    monkeypatch.setattr(tuner, "_sepo_registered", False, raising=False)
    for name in ("run_dpo", "get_train_args", "_training_function"):
        monkeypatch.setattr(tuner, name, getattr(tuner, name))
    monkeypatch.delattr(tuner, "Worker", raising=False)  # as in 0.9.4
    monkeypatch.setattr(
        tuner, "get_ray_trainer", lambda *values, **named: given.append((*values, named)), raising=False
    )
    registration.register(tuner)
    tuner.get_ray_trainer(training_function=tuner._training_function, train_loop_config={"args": {}}, ray_args=None)
    ((function, named),) = given
    assert named == {"train_loop_config": {"args": {}}, "ray_args": None}
    code = "import pickle, sys; pickle.loads(bytes.fromhex(sys.argv[1]))({'args': {'stage': 'sepo', 'no_key': 1}})"
    done = run([sys.executable, "-c", code, pickle.dumps(function).hex()], cwd=tmp_path, expect=1)
    assert done.stderr.splitlines()[-1].startswith("sepo.errors.SepoError: unknown key 'no_key'")


def test_log_lines_go_where_the_hosts_go(monkeypatch):
    from llamafactory.extras import logging as host

    from sepo.hosts.llamafactory.registration import _log_beside_host

    root, logger = host._get_library_root_logger(), logging.getLogger("sepo")
    shown = []
    handler = logging.Handler()
    handler.emit = lambda record: shown.append((record.name, record.getMessage()))
    host.add_handler(handler)  # like LLaMA Board's
    try:
        for rank, expected in (("0", ["host", "sepo"]), ("1", ["host"])):
            monkeypatch.setenv("LOCAL_RANK", rank)
            monkeypatch.setattr(root, "level", logging.INFO)
            shown.clear()
            _log_beside_host()
            host.get_logger("llamafactory.x").info("host")
            logging.getLogger("sepo.x").info("sepo")
            assert [text for _, text in shown] == expected
        assert set(root.handlers) <= set(logger.handlers)
    finally:
        host.remove_handler(handler)


def test_commands_on_one_device_see_the_first(monkeypatch):
    from llamafactory.extras import logging as host

    from sepo.hosts.llamafactory.recipe import quiet_on_one_device

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.delenv("LLAMAFACTORY_VERBOSITY", raising=False)
    quiet_on_one_device()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
    assert host._get_default_logging_level() == logging.ERROR
    monkeypatch.setenv("LLAMAFACTORY_VERBOSITY", "INFO")
    quiet_on_one_device()
    assert host._get_default_logging_level() == logging.INFO


def test_plain_loading_restores_the_engine(monkeypatch):
    from transformers.integrations import deepspeed

    from sepo.scoring.models import plain_loading

    class Engine:
        def is_zero3(self):
            return True

    engine = Engine()
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    deepspeed.set_hf_deepspeed_config(engine)
    try:
        assert deepspeed.is_deepspeed_zero3_enabled()
        with contextlib.suppress(RuntimeError), plain_loading():
            assert not deepspeed.is_deepspeed_zero3_enabled()
            assert "FSDP_CPU_RAM_EFFICIENT_LOADING" not in os.environ
            raise RuntimeError("a model that cannot be loaded")
        assert deepspeed.is_deepspeed_zero3_enabled()
        assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"
    finally:
        deepspeed.unset_hf_deepspeed_config()


def test_the_hosts_checkpointing_is_the_reentrant_one():
    """`recompute_less` unwraps the host's function; the host does not checkpoint frozen layers."""
    import torch
    from llamafactory.hparams import ModelArguments
    from llamafactory.model.model_utils.checkpointing import prepare_model_for_training
    from transformers import AutoModelForCausalLM, LlamaConfig

    from sepo.forward.recompute import recompute_as_before, recompute_less

    config = LlamaConfig(vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2)
    model = AutoModelForCausalLM.from_config(config).train()
    prepare_model_for_training(model, ModelArguments(model_name_or_path="any"))
    tokens = torch.arange(8)[None]

    def gradients():
        model.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    expected = gradients()
    assert recompute_less(model) == 3
    torch.testing.assert_close(gradients(), expected, rtol=0, atol=1e-6)
    recompute_as_before(model)
    assert gradients()[0].equal(expected[0])
