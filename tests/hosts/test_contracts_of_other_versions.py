"""The contracts with LLaMA-Factory 0.9.4 and Axolotl 0.21, which cannot be installed here: read from their files.

torch is not among them; `make hosts` and `make test-axolotl` run the whole contracts, and train, in other environments.
"""

import runpy
from pathlib import Path

import pytest

import sepo.hosts
from sepo.hosts.contract import Entry
from sepo.hosts.llamafactory.contract import CONTRACT
from tests.support.environments import CONTRACTS, unpacked
from tests.support.locks import LOCKS, versions
from tests.support.parsed import Parsed

# Its package cannot be imported here, but the contract is plain data.
AXOLOTL = runpy.run_path(str(Path(sepo.hosts.__file__).with_name("axolotl") / "contract.py"))["CONTRACT"]
CASES = {
    "contract-0.9.4.txt": ("llamafactory-0.9.4.txt", "3.11", CONTRACT),
    "contract-axolotl-0.21.txt": ("axolotl-0.21.txt", "3.12", AXOLOTL),
}


def locked(name, python):
    return versions((LOCKS / name).read_text(), python=python)


def package(entry):
    """Return the distribution of an entry, as locks spell it."""
    return entry.module.split(".")[0].replace("_", "-")


@pytest.mark.parametrize("lock", CONTRACTS, ids=lambda lock: lock.stem)
def test_the_names_of_the_contract_exist_with_their_parameters(lock):
    whole, python, contract = CASES[lock.name]
    known, parsed = locked(whole, python), Parsed(unpacked(lock))
    read = locked(lock.name, python)
    assert read == {name: known[name] for name in read}
    own = [entry for entry in contract if package(entry) in read]
    assert len(own) > 60
    concerned = [entry for entry in own if entry.concerns(known[package(entry)])]
    assert [gap for gap in map(parsed.gap, concerned) if gap] == []
    assert [entry for entry in own if entry not in concerned and parsed.gap(entry) is None] == []


def test_what_is_not_read_here_is_installed_here():
    """The other packages of 0.9.4's contract are those of 0.9.5's environment; of Axolotl's, none are left."""
    known, installed = locked("llamafactory-0.9.4.txt", "3.11"), locked("llamafactory.txt", "3.11")
    others = {package(entry) for entry in CONTRACT} - set(locked("contract-0.9.4.txt", "3.11")) - {"torch"}
    assert {name: known[name] for name in others} == {name: installed[name] for name in others}
    others = {package(entry) for entry in AXOLOTL} - set(locked("contract-axolotl-0.21.txt", "3.12"))
    assert others == {"torch", "sys"}


FILES = {
    "host/__init__.py": (
        "from .base import Base as Renamed\nfrom . import base\nAlias = Renamed\n"
        "_LAZY_IMPORTS = {'Trainer': '.train.run'}\n"
    ),
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
        (Entry("host", "Alias.step", ("inputs",)), "does not take inputs"),
        (Entry("host", "Trainer", ("model",)), None),
        (Entry("host", "Trainer", ("inputs",)), "does not take inputs"),
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
