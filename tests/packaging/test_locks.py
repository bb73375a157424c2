"""The locks satisfy pyproject.toml, have a hash for every file, and name no index."""

import re

import pytest
from packaging.utils import canonicalize_name

from tests.support.locks import COUPLED, ENVIRONMENTS, LOCKS, MADE_FOR, OF_FILES, entries, required, versions

FILES = sorted(LOCKS.glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_requirement_is_one_version_with_hashes_and_nothing_else(path):
    text = path.read_text()
    assert not re.search(r"https?:|--(extra-)?index-url|--find-links|file:", text)
    for requirement, options in entries(text):
        assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), requirement
        assert options, requirement
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", option) for option in options), requirement


@pytest.mark.parametrize(("name", "python"), MADE_FOR)
def test_a_lock_satisfies_pyproject(name, python):
    locked = versions((LOCKS / name).read_text(), python=python)
    for requirement in required(*ENVIRONMENTS[name][0]):
        found = locked.get(canonicalize_name(requirement.name), "")
        assert requirement.specifier.contains(found), f"{requirement}, locked '{found}'; run: make lock KEEP=1"


@pytest.mark.parametrize("name", OF_FILES)
def test_a_lock_satisfies_its_file(name):
    locked = versions((LOCKS / name).read_text(), python="3.11")
    own = [requirement for requirement, _ in entries((LOCKS / name).with_suffix(".in").read_text())]
    for requirement in [*own, *(required(*OF_FILES[name]) if OF_FILES[name] else ())]:
        found = locked.get(canonicalize_name(requirement.name), "")
        assert requirement.specifier.contains(found), f"{requirement}, locked '{found}'; run: make lock KEEP=1"


def test_every_lock_is_tested():
    assert {path.name for path in FILES} == {*ENVIRONMENTS, *OF_FILES, "build.txt"}


def test_what_is_coupled_by_its_binary_interface_is_one_version_in_the_extra():
    pinned = [one.name for one in required("llamafactory") if str(one.specifier).startswith("==")]
    assert sorted(pinned) == sorted(COUPLED)


def test_the_extra_for_a_host_that_is_there_bounds_nothing_of_the_hosts_stack():
    names = {requirement.name for requirement in required("host")}
    assert not names & {"torchvision", "torchaudio", "transformers", "peft", "trl", "accelerate", "datasets"}
    for requirement in required("host"):
        assert {bound.operator for bound in requirement.specifier} <= {">="}, requirement
