"""Inspection of an environment: requirements of extras, pip commands, packages that do not load."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from sepo import installation
from sepo.cli import main
from sepo.errors import SepoError
from sepo.hosts.llamafactory.recipe import require_host
from sepo.installation import AXOLOTL, LLAMAFACTORY, Package, install_command, load_failures, what_is_wrong

ROOT = Path(__file__).parents[1]
RECORDED = [
    "torch>=2.4",
    "numpy>=1.26; extra == 'host'",
    "PyYAML>=6; extra == 'host'",
    "sepo[host]; extra == 'llamafactory'",
    "numpy>=2.0; extra == 'llamafactory'",
    "torch==2.11.0; extra == 'llamafactory'",
    "torchaudio==2.11.0; extra == 'llamafactory'",
    "peft<0.19,>=0.18.1; extra == 'llamafactory'",
    "rich>=13; extra == 'demo'",
]
OF_HOST = [
    "torchaudio>=2.4",
    "bitsandbytes==0.50.2; sys_platform != 'somewhere'",
    "galore==1.0; extra == 'galore'",
    "av>=10",
]


class Recorded:
    """Metadata of a distribution, as an installer records it."""

    def __init__(self, direct_url):
        self.direct_url = direct_url

    def read_text(self, name):
        assert name == "direct_url.json"
        return None if self.direct_url is None else json.dumps(self.direct_url)


@pytest.fixture
def recorded(monkeypatch):
    """Return a function that records a source: a direct URL, None for an index, ``absent`` for no installation."""

    def install(direct_url):
        def found(values):
            def read(name):
                if name not in values or (name == "sepo" and direct_url == "absent"):
                    raise metadata.PackageNotFoundError(name)
                return values[name]

            return read

        monkeypatch.setattr(installation.metadata, "distribution", found({"sepo": Recorded(direct_url)}))
        monkeypatch.setattr(installation.metadata, "requires", found({"sepo": RECORDED, "llamafactory": OF_HOST}))

    return install


def test_an_extra_is_expanded_and_every_package_is_there_once(recorded):
    recorded(None)
    found = {name: str(requirement) for name, requirement in installation.requirements("llamafactory").items()}
    assert found == {
        "numpy": "numpy>=2.0",
        "peft": "peft<0.19,>=0.18.1",
        "pyyaml": "pyyaml>=6",
        "torch": "torch==2.11.0",
        "torchaudio": "torchaudio==2.11.0",
    }


def test_every_extra_of_this_package_has_one_requirement_of_each():
    for extra in ("llamafactory", "axolotl"):
        found = installation.requirements(extra)
        assert {"torch", "numpy", "filelock", extra} <= set(found)
        assert str(found["torch"].specifier).startswith("==")


@pytest.mark.parametrize(
    ("direct_url", "expected"),
    [
        ({"url": ROOT.as_uri(), "dir_info": {"editable": True}}, f"pip install -e '{ROOT}[llamafactory]'"),
        ({"url": ROOT.as_uri(), "dir_info": {}}, f"pip install '{ROOT}[llamafactory]'"),
        (
            {"url": "https://host/sepo.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}, "subdirectory": "python"},
            "pip install 'sepo[llamafactory] @ git+https://host/sepo.git@abc#subdirectory=python'",
        ),
        (
            {"url": "https://host/sepo-0.1.0-py3-none-any.whl", "archive_info": {}},
            "pip install 'sepo[llamafactory] @ https://host/sepo-0.1.0-py3-none-any.whl'",
        ),
        ("absent", f"pip install '{ROOT}[llamafactory]'"),
    ],
)
def test_the_extra_is_installed_from_the_source_of_the_package(recorded, direct_url, expected):
    recorded(direct_url)
    assert install_command("llamafactory") == expected


@pytest.mark.parametrize("direct_url", [None, {"url": "file:///gone/sepo-0.1.0-py3-none-any.whl", "archive_info": {}}])
def test_a_source_that_is_gone_is_replaced_by_its_requirements(recorded, direct_url):
    recorded(direct_url)
    command = install_command("llamafactory", "demo")
    assert command == (
        "pip install 'numpy>=2.0' 'peft<0.19,>=0.18.1' 'pyyaml>=6' 'rich>=13' torch==2.11.0 torchaudio==2.11.0"
    )


def test_a_package_that_is_copied_onto_the_path_has_no_place(recorded, monkeypatch):
    recorded("absent")
    monkeypatch.setattr(installation, "__file__", "/somewhere/lib/sepo/installation.py")
    assert install_command("axolotl").startswith("pip install 'PATH_OF_SEPO[axolotl]' (")


def requirement(text):
    return Requirement(text)


TORCHAUDIO = Package("torchaudio", "2.11.1", (requirement("torchaudio==2.11.0"),), "OSError: undefined symbol")
PEFT = Package("peft", "0.19.0", (requirement("peft<0.19,>=0.18.1"),), "ImportError: cannot import name")


@pytest.mark.parametrize(
    ("wrong", "installed", "expected"),
    [
        (
            [TORCHAUDIO],
            {"torch": "2.11.0", "torchaudio": "2.11.1"},
            "torchaudio 2.11.1 is outside ==2.11.0 and does not load (OSError: undefined symbol); "
            "run: pip install torch==2.11.0 torchaudio==2.11.0",
        ),
        (
            [Package("torchaudio", "2.11.0+cu130", (requirement("torchaudio==2.11.0"),), "OSError: no such file")],
            {"torch": "2.11.0", "torchaudio": "2.11.0+cu130"},
            "torchaudio 2.11.0+cu130 does not load (OSError: no such file); "
            "run: pip install --force-reinstall --no-deps torch==2.11.0 torchaudio==2.11.0",
        ),
        (
            [PEFT, Package("pyyaml", None, (requirement("pyyaml>=6"),), needed=requirement("pyyaml>=6"))],
            {"peft": "0.19.0"},
            "peft 0.19.0 is outside <0.19,>=0.18.1 and does not load (ImportError: cannot import name); "
            "pyyaml is not installed; "
            "run: pip install 'peft<0.19,>=0.18.1' 'pyyaml>=6'",
        ),
        (
            [Package("bitsandbytes", "0.50.2", (), "OSError: no such file")],
            {"bitsandbytes": "0.50.2"},
            "bitsandbytes 0.50.2 does not load (OSError: no such file); "
            "run: pip install --force-reinstall --no-deps bitsandbytes==0.50.2",
        ),
        (
            [Package("peft", "0.18.1", (requirement("peft<0.19,>=0.18.1"),), "OSError: undefined symbol"), TORCHAUDIO],
            {"torch": "2.11.0", "torchaudio": "2.11.1"},
            "torchaudio 2.11.1 is outside ==2.11.0 and does not load (OSError: undefined symbol); "
            "run: pip install torch==2.11.0 torchaudio==2.11.0",
        ),
        (
            [Package("av", "10.0", (), "OSError: no such file")],
            {"av": "10.0"},
            f"av 10.0 does not load (OSError: no such file); run: pip install '{ROOT}[llamafactory]'",
        ),
    ],
    ids=["another patch release", "the right version", "ranges", "a pin of the host", "one with it", "without a pin"],
)  # fmt: skip
def test_one_command_repairs_all_broken_packages(recorded, monkeypatch, wrong, installed, expected):
    recorded({"url": ROOT.as_uri(), "dir_info": {}})
    monkeypatch.setattr(installation.metadata, "version", {"llamafactory": "0.9.5", **installed}.get)
    assert what_is_wrong(LLAMAFACTORY, wrong) == expected


def sections(found, *, versions, recorded, monkeypatch):
    """Return the lines of `sepo doctor` on packages, and whether it calls none of them wrong."""
    from sepo.cli.doctor import _packages

    recorded(None)
    monkeypatch.setattr(installation.metadata, "version", versions.get)
    findings = list(_packages(LLAMAFACTORY, found))
    return [(finding.text, finding.note) for finding in findings], all(finding.good for finding in findings)


@pytest.mark.parametrize(
    ("host", "torch", "expected"),
    [
        ("0.9.4", "2.9.1", {"llamafactory": ["==0.9.4"], "torch": ["==2.9.1"], "transformers": ["==4.57.1"]}),
        ("0.9.5", "2.11.0", {"llamafactory": ["<0.9.6,>=0.9.5"], "torch": ["==2.11.0"], "transformers": ["<5.6"]}),
        ("0.9.6.dev0", "2.11.0", {"llamafactory": ["==0.9.6.dev0"], "transformers": ["<5.6", "==5.8.0"]}),
        ("0.9.7", "2.11.0", {"llamafactory": ["<0.9.6,>=0.9.5"], "torch": ["==2.11.0"], "transformers": ["<5.6"]}),
    ],
)
def test_each_tested_version_of_the_host_has_its_packages(recorded, monkeypatch, host, torch, expected):
    recorded(None)
    more = [
        *RECORDED,
        "llamafactory<0.9.6,>=0.9.5; extra == 'llamafactory'",
        "transformers<5.6; extra == 'llamafactory'",
    ]
    monkeypatch.setattr(installation.metadata, "requires", {"sepo": more, "llamafactory": OF_HOST}.get)
    monkeypatch.setattr(installation.metadata, "version", {"llamafactory": host, "torch": torch}.get)
    found = {name: [str(item.specifier) for item in items] for name, items in installation.tested(LLAMAFACTORY).items()}
    assert {name: found[name] for name in expected} == expected
    assert found["peft"] == (["==0.17.1"] if host == "0.9.4" else ["<0.19,>=0.18.1"])
    assert found["pyyaml"] == [">=6"]


def test_a_version_that_was_not_tested_is_noted_and_not_wrong(recorded, monkeypatch):
    peft = Package("peft", "0.19.0", (requirement("peft<0.19,>=0.18.1"),), loaded=True)
    absent = Package("deepspeed", None, (requirement("deepspeed>=0.19"),))
    torch = Package("torch", "2.11.0", (requirement("torch==2.11.0"),), loaded=True, needed=requirement("torch>=2.4"))
    versions = {"llamafactory": "0.9.5", "peft": "0.19.0"}
    lines, good = sections([torch, peft, absent], versions=versions, recorded=recorded, monkeypatch=monkeypatch)
    assert good
    assert lines == [
        ("torch 2.11.0, tested, loads", False),
        ("peft 0.19.0, not tested, loads", True),
        ("deepspeed is not installed", True),
        (
            "peft 0.19.0: not tested with sepo and LLaMA-Factory 0.9.5; if runs fail, use tested versions: "
            "pip install 'peft<0.19,>=0.18.1'",
            True,
        ),
    ]


@pytest.mark.parametrize(
    ("package", "text"),
    [
        (Package("torch", "2.3", needed=requirement("torch>=2.4")), "torch 2.3 is outside >=2.4"),
        (Package("pyyaml", None, needed=requirement("pyyaml>=6")), "pyyaml is not installed"),
        (
            Package("numpy", "2.4", (requirement("numpy>=2.0"),), "ImportError: no", needed=requirement("numpy>=1.26")),
            "numpy 2.4 does not load (ImportError: no)",
        ),
    ],
)  # fmt: skip
def test_what_sepo_needs_and_what_does_not_load_is_wrong(recorded, monkeypatch, package, text):
    lines, good = sections([package], versions={}, recorded=recorded, monkeypatch=monkeypatch)
    assert not good
    assert lines[-1][0].startswith(f"{text}; run: pip install ")


def test_the_tested_sets_are_those_of_the_locks():
    """The packages of a set are compared with its lock; those of a development version have the lock of the extra."""
    from tests.support.locks import LOCKS
    from tests.support.locks import versions as locked

    (released,) = [own for own in LLAMAFACTORY.tested if own["llamafactory"] == "==0.9.4"]
    found = locked((LOCKS / "llamafactory-0.9.4.txt").read_text(), python="3.11")
    assert released == {name: f"=={found[name]}" for name in released}
    extra = installation.requirements("llamafactory")
    own = {name for name in extra if not extra[name].specifier.contains(found.get(name, "0"))}
    assert own - {"llamafactory"} <= set(released)


def test_without_records_the_extra_is_the_repair(recorded, monkeypatch):
    """When sepo runs from the path, the host's own range of torchaudio would install the same version again."""
    recorded("absent")
    monkeypatch.setattr(installation.metadata, "version", {"torchaudio": "2.11.1"}.get)
    line = what_is_wrong(LLAMAFACTORY, [Package("torchaudio", "2.11.1", (), "OSError: undefined symbol")])
    assert line.endswith(f"; run: pip install '{ROOT}[llamafactory]'")


def test_loading_continues_after_an_error_and_after_a_crash(tmp_path, monkeypatch):
    modules = {
        "sound_one": "print('printed during import', end='')",
        "broken_one": "try:\n    open('/no/such/library.so')\nexcept OSError as e:\n    raise RuntimeError from e",
        "broken_with_it": "import broken_one",
        "killed_one": "import os\nos.abort()",
        "ended_one": "import os\nos._exit(7)",
        "sound_two": "",
    }  # fmt: skip
    for name, text in modules.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert load_failures(list(modules)) == {
        "broken_one": "FileNotFoundError: [Errno 2] No such file or directory: '/no/such/library.so'",
        "broken_with_it": "FileNotFoundError: [Errno 2] No such file or directory: '/no/such/library.so'",
        "killed_one": "the interpreter is killed by SIGABRT",
        "ended_one": "the interpreter ends with status 7",
    }


def test_a_directory_without_code_is_not_a_host(tmp_path):
    (tmp_path / "axolotl").mkdir()  # a clone
    code = "from sepo.installation import is_installed; print(is_installed('axolotl'), is_installed('json'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_a_command_names_the_host_that_it_needs(monkeypatch):
    there = {AXOLOTL.name}
    monkeypatch.setattr("sepo.hosts.llamafactory.recipe.is_installed", lambda name: name in there)
    with pytest.raises(SepoError, match=r"has Axolotl, and `sepo train` needs LLaMA-Factory.*axolotl train config"):
        require_host("train")
    there.clear()
    with pytest.raises(SepoError, match=r"LLaMA-Factory is not installed here; run: pip install .*\[llamafactory\]"):
        require_host("train")


def test_doctor_without_a_host_names_both(monkeypatch, capsys):
    monkeypatch.setattr("sepo.cli.doctor.installed_hosts", lambda: ())
    assert main(["doctor"]) == 1
    (wrong,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  WRONG ")]
    assert wrong.split()[1:5] == ["no", "host", "is", "installed;"]
    assert install_command("llamafactory") in wrong
    assert install_command("axolotl") in wrong


@pytest.mark.parametrize("text", ["import os\nos.abort()", "raise OSError('no library')", "raise SystemExit(0)"])
def test_nothing_is_reported_by_a_process_in_which_a_package_does_not_load(text, tmp_path, monkeypatch, capsys):
    """The caller then finds out which one, and reports it."""
    from sepo.cli.doctor import _reported_by_process

    (tmp_path / "torch.py").write_text(f"print('printed during import')\n{text}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert _reported_by_process((), good=True, start=None) is None
    assert capsys.readouterr().out == ""


def test_doctor_compares_no_versions_if_none_are_recorded(recorded, monkeypatch, capsys):
    """When sepo runs from the path, there is no distribution of this name."""
    from sepo.cli.doctor import _packages, _section

    recorded("absent")
    assert _section("packages", _packages(LLAMAFACTORY, [Package("torch", "2.0", loaded=True)]))
    printed = capsys.readouterr().out
    assert "torch 2.0, loads\n" in printed
    assert "versions are not compared: sepo is on the path but not installed" in printed


def test_two_hosts_in_one_environment_are_reported(capsys):
    from sepo.cli.doctor import _hosts, _section

    assert not _section("host", _hosts((LLAMAFACTORY, AXOLOTL)))
    assert "LLaMA-Factory and Axolotl are both installed" in capsys.readouterr().out
