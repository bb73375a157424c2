"""The contract with LLaMA-Factory 0.9.4, whose packages cannot be installed beside those of 0.9.5: read from its files.

torch is not among them; `make hosts` runs the whole contract, and trains, in an environment of its own.
"""

import pytest

from sepo.hosts.contract import Entry
from sepo.hosts.llamafactory.contract import CONTRACT
from tests.support.environments import CONTRACT as LOCK
from tests.support.environments import unpacked
from tests.support.locks import LOCKS, entries, versions
from tests.support.parsed import Parsed

VERSIONS = versions((LOCKS / "llamafactory-0.9.4.txt").read_text(), python="3.11")


@pytest.fixture(scope="module")
def parsed():
    return Parsed(unpacked(LOCK))


def package(entry):
    return entry.module.split(".")[0]


def test_the_names_of_the_contract_exist_with_their_parameters(parsed):
    own = [entry for entry in CONTRACT if parsed.has(package(entry))]
    assert len(own) > 80
    concerned = [entry for entry in own if entry.concerns(VERSIONS[package(entry)])]
    assert [gap for gap in map(parsed.gap, concerned) if gap] == []
    assert [entry for entry in own if entry not in concerned and parsed.gap(entry) is None] == []


def test_what_is_not_read_here_is_what_the_extra_has():
    """The other packages of the contract are installed in this environment, in the version that 0.9.4 runs with."""
    read = {str(requirement): VERSIONS[requirement.name] for requirement, _ in entries(LOCK.read_text())}
    assert read == {f"{name}=={VERSIONS[name]}": VERSIONS[name] for name in ("llamafactory", "peft", "transformers")}
    installed = versions((LOCKS / "llamafactory.txt").read_text(), python="3.11")
    others = {package(entry) for entry in CONTRACT} - {"llamafactory", "peft", "transformers", "torch"}
    assert {name: VERSIONS[name] for name in others} == {name: installed[name] for name in others}


FILES = {
    "host/__init__.py": "from .base import Base as Renamed\nfrom . import base\n",
    "host/base.py": (
        "from collections.abc import MutableMapping\n\nclass Base:\n    rate: int = 0\n    def step(self, model): ...\n"
        "    def go(self, *args, **kwargs): self.left = 1\n\nclass Registry(MutableMapping):\n    pass\n\n"
        "REGISTRY = Registry()\n"
    ),
    "host/train/run.py": (
        "from ..base import Base\n\nclass Trainer(Base):\n    def __init__(self, model): self.model = model\n\n"
        "class Arguments(Base):\n    name: str = ''\n\ndef run(config): ...\n"
    ),
}


@pytest.mark.parametrize(
    ("entry", "missing"),
    [
        (Entry("host.train.run", "run", ("config",)), None),
        (Entry("host.train.run", "run", ("args",)), "does not take args"),
        (Entry("host.train.run", "gone"), "does not exist (host.train.run has no gone)"),
        (Entry("host.gone", "run"), "does not exist (no module host.gone)"),
        (Entry("host", "Renamed.step", ("model",)), None),
        (Entry("host", "Renamed.step", ("inputs",)), "does not take inputs"),
        (Entry("host.train.run", "Trainer", ("model",)), None),
        (Entry("host.train.run", "Trainer.step", ("model",)), None),
        (Entry("host.train.run", "Trainer.go", ("anything",)), None),
        (Entry("host.train.run", "Trainer.gone"), "does not exist (Trainer has no gone)"),
        (Entry("host.train.run", "Trainer.left", on_instances=True), None),
        (Entry("host.train.run", "Trainer.left"), "does not exist (Trainer has no left)"),
        (Entry("host.train.run", "Trainer.right", on_instances=True), "does not exist (Trainer has no right)"),
        (Entry("host.train.run", "Arguments", ("name", "rate")), None),
        (Entry("host.train.run", "Arguments", ("nothing",)), "does not take nothing"),
        (Entry("host.base", "REGISTRY.get"), None),
        (Entry("host.base", "REGISTRY.get_interface"), "does not exist (REGISTRY has no get_interface)"),
    ],
)
def test_missing_names_are_found_in_files(tmp_path, entry, missing):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = Parsed(tmp_path).gap(entry)
    assert found == (None if missing is None else f"{entry} {missing}")
