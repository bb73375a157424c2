"""LLaMA Board with sepo's stages, without a browser: listing, filling in, previewing, saving and starting."""

import asyncio
import copy
import doctest
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from llamafactory.extras import constants
from llamafactory.extras import logging as host_logging
from llamafactory.webui import common, control, interface, locales, runner
from tqdm import tqdm

import sepo.hosts
from sepo import cli
from sepo.hosts.llamafactory.board import command, patch
from sepo.hosts.llamafactory.board.keys import Memory, stage_keys, with_keys_of
from sepo.hosts.llamafactory.board.progress import abortable, report_scoring
from sepo.hosts.llamafactory.board.texts import EXTRA_ARGUMENTS, LABELS
from sepo.hosts.llamafactory.doctor import board_findings
from sepo.hosts.llamafactory.reading import SECRETS
from sepo.hosts.llamafactory.recipe import check_recipe, host_keys
from sepo.hosts.llamafactory.registration import _log_beside_host
from sepo.objectives import resolve_method
from sepo.recipe.resolve import resolve
from sepo.recipe.stage_names import STAGES
from tests.support.packages import on_path, write_example, write_package
from tests.support.recipes import run, sepo_recipe

HOST_LABELS = ["Supervised Fine-Tuning", "Reward Modeling", "PPO", "DPO", "KTO", "Pre-Training"]
HOSTILE = "it's <img src=x onerror=alert(1)>; $(touch pwned) `touch pwned` \"\\ \n```\n# x & |"


@contextmanager
def as_it_was():
    """Restore the host's board after a test that patches it."""
    shared = (constants.TRAINING_STAGES, constants.STAGES_USE_PAIR_DATA, locales.LOCALES["extra_args"])
    before = copy.deepcopy(shared)
    names = (
        (common, "_clean_cmd"),
        (runner, "gen_cmd"),
        (runner, "Popen"),
        (interface, "create_train_tab"),
    )
    with pytest.MonkeyPatch.context() as patched:
        for module, name in names:
            patched.setattr(module, name, getattr(module, name))
        patched.setattr(interface, "_sepo_registered", False, raising=False)
        patched.setattr(command, "enabled", lambda: False)
        yield patched
    for value, old in zip(shared, before, strict=True):
        value.clear()
        value.update(old)


@pytest.fixture
def host():
    with as_it_was() as patched:
        yield patched


@pytest.fixture
def board(host):
    patch.register(interface)
    return host


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return the page and its engine, created once, since that takes a second."""

    async def page():
        return interface.create_ui()  # without a running loop gradio leaks several

    engines = []
    with as_it_was() as patched:
        patched.chdir(tmp_path_factory.mktemp("board"))
        patched.setattr(
            interface, "Engine", lambda make=interface.Engine, **kw: engines.append(make(**kw)) or engines[0]
        )
        patch.register(interface)
        return asyncio.run(page()), engines[0]


class Visitor:
    """Actions of a visitor, by the host's names of the elements."""

    def __init__(self, built, world):
        self.page, self.engine = built
        self.runner, self.manager = self.engine.runner, self.engine.manager
        self.values = {element: getattr(element, "value", None) for element in self.manager.get_elem_list()}
        self.set(
            top__lang="en", top__model_name="Custom", top__model_path=str(world / "policy"), top__template="chatml",
            top__checkpoint_path=[], train__dataset_dir=str(world / "data"), train__dataset=["tiny_pairs"],
            train__output_dir="out",
        )  # fmt: skip

    def set(self, **values):
        for name, value in values.items():
            self.values[self.manager.get_elem_by_id(name.replace("__", "."))] = value

    def get(self, name):
        return self.values[self.manager.get_elem_by_id(name)]

    def add(self, **keys):
        self.set(train__extra_args=json.dumps({**json.loads(self.get("train.extra_args")), **keys}))

    def choose(self, label):
        box, *_ = patch._fill(label, self.get("train.extra_args"), Memory())
        self.set(train__training_stage=label, train__extra_args=box.value)

    def arguments(self):
        return self.runner._parse_train_args(self.values)

    def preview(self):
        return next(iter(list(self.runner.preview_train(self.values))[-1].values()))


@pytest.fixture
def visitor(board, built, world, tmp_path):
    board.chdir(tmp_path)
    return Visitor(built, world)


def name_oracle(visitor, world):
    visitor.add(oracle_model=str(world / "oracle"), oracle_base_model=str(world / "base"))


def block(markdown):
    """Return language and content of a Markdown text that is a single code block."""
    from markdown_it import MarkdownIt

    tokens = MarkdownIt().parse(markdown)
    assert [token.type for token in tokens] == ["fence"], markdown
    return tokens[0].info, tokens[0].content


def pasted(text, folder):
    """Return the arguments that each program gets when a text is pasted into a shell, by the program's name."""
    show = "import json, os, sys; print(json.dumps([os.environ.get('FORCE_TORCHRUN'), *sys.argv[1:]]))"
    stub = f'show() {{ {sys.executable} -c "{show}" "$@"; }}\n'
    stub += "".join(f'{name}() {{ show {name} "$@"; }}\n' for name in ("sepo", "llamafactory-cli"))
    done = run(["bash", "-c", stub + text], cwd=folder)
    torchrun, *words = json.loads(done.stdout)
    return words, torchrun


# Stages and data sets


def test_sepo_stages_are_listed_after_dpo(board):
    stages = constants.TRAINING_STAGES
    assert list(stages) == [*HOST_LABELS[:4], "SePO", "Selective-DPO", "MinorDPO", "T-REG", *HOST_LABELS[4:]]
    assert [stages[label] for label in LABELS.values()] == list(STAGES)
    patch.register(interface)  # idempotent
    assert len(stages) == 10


def test_registered_stages_are_listed_by_name_and_never_over_the_hosts(host, tmp_path):
    folder = write_example(tmp_path / "site")
    write_package(folder, "odd-names", {"stages": dict.fromkeys(("DPO", "T-REG", HOSTILE[:20]), "gone:x")})
    with on_path(folder):
        patch.register(interface)
        added = {label: stage for label, stage in constants.TRAINING_STAGES.items() if label not in HOST_LABELS}
        assert added["focal_mean"] == "focal_mean"
        assert added["DPO (registered)"] == "DPO"
        assert added["T-REG (registered)"] == "T-REG"
        assert constants.TRAINING_STAGES["DPO"] == "dpo"
        with pytest.warns(UserWarning, match="cannot be loaded"):  # shown to the visitor as a warning
            broken = list(patch._fill("DPO (registered)", '{"optim": "x"}', Memory()))
        assert all(update == {"__type__": "update"} for update in broken)  # broken stage: the box is unchanged
        filled, *_ = patch._fill("focal_mean", '{"optim": "x"}', Memory())
    assert json.loads(filled.value)["focal_dpo_mean"] is True


def test_sepo_stages_take_ranking_data_sets(board, world):
    for label in LABELS.values():
        assert [name for name, _ in control.list_datasets(str(world / "data"), label).choices] == ["tiny_pairs"]
    assert [name for name, _ in control.list_datasets(str(world / "data"), "DPO").choices] == ["tiny_pairs"]
    assert [name for name, _ in control.list_datasets(str(world / "data"), "KTO").choices] == ["tiny_plain"]


def test_every_language_has_the_help_and_the_board_changes_to_it(visitor):
    assert set(EXTRA_ARGUMENTS) == set(locales.LOCALES["extra_args"])
    for language, text in EXTRA_ARGUMENTS.items():
        assert locales.LOCALES["extra_args"][language]["info"].endswith(" " + text)
        assert all(word in text for word in ("oracle_model", "oracle_base_model", "null", *LABELS.values()))
        box = visitor.engine.change_lang(language)[visitor.manager.get_elem_by_id("train.extra_args")]
        assert text in box.info


def test_other_languages_get_the_english_help(host):
    host.setitem(locales.LOCALES["extra_args"], "xx", {"label": "X", "info": "Y."})
    patch.register(interface)
    assert locales.LOCALES["extra_args"]["xx"]["info"] == "Y. " + EXTRA_ARGUMENTS["en"]


# The keys in the box for extra arguments


def test_a_visitors_choice_fills_the_box_and_a_loaded_configuration_does_not(built):
    page, engine = built
    (filling,) = [function for function in page.fns.values() if function.fn is patch._fill]
    assert filling.targets == [(engine.manager.get_elem_by_id("train.training_stage")._id, "input")]


@pytest.mark.parametrize("stage", STAGES)
def test_the_keys_that_are_filled_in_are_the_defaults(stage, world, tmp_path):
    oracle = {"oracle_model": str(world / "oracle"), "oracle_base_model": str(world / "base")}
    recipe = sepo_recipe(world, tmp_path / "out", stage=stage, oracle_model=None, oracle_base_model=None)
    if stage == "sepo":
        recipe |= oracle
    filled = {**stage_keys(stage), **{name: value for name, value in oracle.items() if name in recipe}}
    _, plain = resolve(recipe, host_keys=host_keys())
    _, with_keys = resolve({**recipe, **filled}, host_keys=host_keys())
    assert with_keys == plain
    assert json.loads(json.dumps(filled)) == filled


def test_a_stage_shows_what_it_has(tmp_path):
    assert stage_keys("sepo") == {
        "oracle_model": None,
        "oracle_model_adapters": None,
        "oracle_base_model": None,
        "oracle_base_model_adapters": None,
        "oracle_model_quantization_bit": None,
        "oracle_model_revision": None,
        "oracle_model_adapters_revision": None,
        "oracle_base_model_revision": None,
        "oracle_base_model_adapters_revision": None,
        "oracles": None,
        "oracle_checkpoints": None,
        "oracle_base_checkpoints": None,
        "oracle_scores": None,
        "sepo_gamma": 1.0,
        "select_ratio": 0.3,
        "pref_ftx": 0.0,
    }
    assert stage_keys("selective_dpo") == {"ref_model": None, "pref_beta": 0.01, "select_ratio": 0.4, "pref_ftx": 0.0}
    assert set(stage_keys("treg")) >= {"pref_beta", "treg_alpha", "treg_weighting", "treg_eval_model"}
    with on_path(write_example(tmp_path / "site")):
        keys = stage_keys("focal_mean")
    assert (keys["focal_dpo_mean"], keys["focal_dpo_focus"], keys["pref_beta"]) == (True, 2.0, 2.0)


def test_values_of_the_visitor_are_restored_with_their_stage():
    start = '{"optim": "adamw_torch"}'
    text, memory = with_keys_of("sepo", start, Memory())
    mine = {**json.loads(text), "oracle_model": "o", "select_ratio": 0.5, "batch_tokens": 64, "max_steps": 2}
    text, memory = with_keys_of("treg", json.dumps(mine), memory)
    treg = json.loads(text)
    assert not [name for name in treg if name.startswith(("oracle", "select", "sepo"))]
    assert (treg["batch_tokens"], treg["max_steps"], treg["treg_alpha"]) == (64, 2, 0.25)
    text, memory = with_keys_of("dpo", text, memory)
    assert json.loads(text) == {"optim": "adamw_torch", "max_steps": 2}  # the host has none of sepo's keys
    text, memory = with_keys_of("sepo", text, memory)
    assert json.loads(text) == mine


def test_a_key_of_the_hosts_that_the_visitor_wrote_stays():
    text, memory = with_keys_of("minor_dpo", '{"pref_beta": 0.7}', Memory())
    assert json.loads(text)["pref_beta"] == 0.7
    assert with_keys_of("dpo", text, memory)[0] == '{"pref_beta": 0.7}'


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"x"', "1"])
def test_a_text_that_is_not_an_object_is_left_unchanged(text):
    assert with_keys_of("sepo", text, Memory()) == (text, Memory())


def test_a_text_with_host_keys_only_is_left_unchanged():
    text = '{ "optim":"adamw_torch" }'
    assert with_keys_of("sft", text, Memory()) == (text, Memory())


VALUES = st.one_of(st.none(), st.booleans(), st.integers(2, 9), st.text(max_size=5))


@settings(max_examples=60)
@given(
    changes=st.dictionaries(st.sampled_from([*stage_keys("sepo"), "objective", "seed", "pref_beta"]), VALUES),
    ways=st.lists(st.sampled_from([*STAGES, "dpo", "sft"]), max_size=6),
)
def test_nothing_is_lost_on_any_way_through_the_stages(changes, ways):
    text, memory = with_keys_of("sepo", '{"optim": "adamw_torch"}', Memory())
    mine = {**json.loads(text), **changes}
    text = json.dumps(mine)
    for stage in [*ways, "sepo"]:
        text, memory = with_keys_of(stage, text, memory)
    assert json.loads(text) == mine


# Previewed, saved and started commands


@pytest.mark.parametrize("label", LABELS.values())
@pytest.mark.parametrize("is_enabled", [False, True])
def test_the_previewed_command_works_when_pasted(visitor, board, world, label, is_enabled, tmp_path):
    board.setattr(command, "enabled", lambda: is_enabled)
    visitor.choose(label)
    if label == "SePO":
        name_oracle(visitor, world)
    language, text = block(visitor.preview())
    (program, train, *words), torchrun = pasted(text, tmp_path)
    assert (language, program, train) == ("bash", "llamafactory-cli" if is_enabled else "sepo", "train")
    assert torchrun is None
    _, settings_of_words = check_recipe(words)
    _, settings_of_saved = check_recipe(yaml.safe_load(Path(common.save_cmd(visitor.arguments())).read_text()))
    assert settings_of_words == settings_of_saved
    assert settings_of_words.stage == constants.TRAINING_STAGES[label]
    notes = settings_of_words.notes
    assert not [note for note in notes if "default of objective" in note]  # the defaults are the stage's


def test_a_sum_of_objectives_is_previewed_saved_and_kept(visitor, world, tmp_path):
    """A mapping among the further arguments, and keys of a token weight."""
    visitor.choose("MinorDPO")
    visitor.add(objective={"d2po": 0.8, "orpo": 0.2}, token_weight="position", d2po_decay=0.9)
    (_, _, *words), _ = pasted(block(visitor.preview())[1], tmp_path)
    _, found = check_recipe(words)
    _, saved = check_recipe(yaml.safe_load(Path(common.save_cmd(visitor.arguments())).read_text()))
    expected = resolve_method({"d2po": 0.8, "orpo": 0.2}, token_weight="position", decay=0.9)
    assert found.method == saved.method == expected
    text, memory = with_keys_of("sepo", visitor.get("train.extra_args"), Memory())
    text, _ = with_keys_of("minor_dpo", text, memory)
    assert json.loads(text)["objective"] == {"d2po": 0.8, "orpo": 0.2}
    assert json.loads(text)["d2po_decay"] == 0.9


def test_a_registered_stage_is_previewed(host, built, world, tmp_path):
    host.chdir(tmp_path)
    with on_path(write_example(tmp_path / "site")):
        patch.register(interface)
        visitor = Visitor(built, world)
        visitor.choose("focal_mean")
        visitor.add(focal_dpo_mean=False)  # true by default: a value that the host treats as unset must be passed
        (_, _, *words), _ = pasted(block(visitor.preview())[1], tmp_path)
        _, found = check_recipe(words)
        _, saved = check_recipe(yaml.safe_load(Path(common.save_cmd(visitor.arguments())).read_text()))
    assert found.method.hyperparameters["mean"] is saved.method.hyperparameters["mean"] is False


def test_a_host_stage_is_previewed_and_cleaned_as_before(visitor, board):
    args = {**visitor.arguments(), "pref_beta": 0.1, "fp16": False}
    previewed = runner.gen_cmd(args)
    cleaned = common._clean_cmd(args)
    board.undo()
    assert previewed == runner.gen_cmd(args)
    assert cleaned == common._clean_cmd(args)


def test_what_the_board_emits_for_dpo_is_accepted_by_sepo_stages(visitor):
    """A DPO file of the board in which only the stage was changed."""
    visitor.set(train__training_stage="DPO")
    recipe = yaml.safe_load(Path(common.save_cmd(visitor.arguments())).read_text())
    assert {"pref_beta", "pref_ftx", "pref_loss"} <= set(recipe)
    _, found = check_recipe({**recipe, "stage": "minor_dpo"})
    assert found.stage == "minor_dpo"


def test_the_preview_of_a_recipe_that_cannot_run_is_its_error(visitor, world):
    visitor.choose("SePO")
    language, text = block(visitor.preview())
    assert language == "text"
    assert text.startswith("sepo: error: no oracle is named")
    assert max(map(len, text.splitlines())) <= 100
    name_oracle(visitor, world)
    visitor.add(oracle_model="/no/such/oracle")
    assert "/no/such/oracle" in block(visitor.preview())[1]
    visitor.add(slect_ratio=1)
    assert "unknown key 'slect_ratio'. Did you mean 'select_ratio'" in " ".join(block(visitor.preview())[1].split())


def test_a_preview_sends_no_request_to_the_hub(visitor, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("request to the hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    visitor.choose("SePO")
    visitor.add(oracle_model="team/oracle", oracle_base_model="team/base")
    assert block(visitor.preview())[0] == "bash"


def test_hostile_values_are_words_of_the_command_and_code_of_the_page(board, tmp_path):
    args = {
        "stage": "sepo",
        "dataset": HOSTILE,
        HOSTILE: 1,
        "rope": {"a": HOSTILE},
        "modules": [HOSTILE, "b"],
        "oracle_model_adapters": [HOSTILE, "b"],
        "deepspeed": "ds.json",
    }
    words, torchrun = pasted(command.shell_command(args), tmp_path)
    assert words == [
        "sepo", "train", "--stage", "sepo", "--dataset", HOSTILE, f"--{HOSTILE}", "1",
        "--rope", json.dumps({"a": HOSTILE}, separators=(",", ":")), "--modules", HOSTILE, "b",
        "--oracle_model_adapters", f"{HOSTILE},b", "--deepspeed", "ds.json",
    ]  # fmt: skip
    assert torchrun == "1"
    assert list(tmp_path.iterdir()) == []
    assert HOSTILE in block(command._block(HOSTILE, "bash"))[1]


def test_the_example_of_a_command(board):
    assert doctest.testmod(command).failed == 0


def test_sepo_flags_that_are_off_are_passed_on(board):
    args = {
        "stage": "minor_dpo",
        "objective": "ipo",
        "ipo_average": False,
        "fp16": False,
        "seed": None,
        "do_train": True,
    }
    assert common._clean_cmd(args) == {k: args[k] for k in ("stage", "objective", "ipo_average", "do_train")}
    assert common._clean_cmd({**args, "stage": "dpo"}) == {"stage": "dpo", "objective": "ipo", "do_train": True}


class Process:
    """Stand-in for a run that ended successfully."""

    returncode, pid = 0, 0

    def __init__(self, words, **options):
        self.words, self.options = words, options

    def communicate(self, timeout):
        return "", ""


@pytest.mark.parametrize(("label", "is_enabled"), [("T-REG", False), ("T-REG", True), ("DPO", False)])
def test_a_run_is_started_by_a_command_that_has_its_stage(visitor, board, label, is_enabled, tmp_path):
    started = []
    board.setattr(command.subprocess, "Popen", lambda words, **kw: started.append(Process(words, **kw)) or started[-1])
    board.setattr(command, "enabled", lambda: is_enabled)
    board.setattr(runner, "is_accelerator_available", lambda: True)  # otherwise the host warns
    visitor.choose(label)
    *_, last = visitor.runner.run_train(visitor.values)
    assert any("Finished." in str(value) for value in last.values())
    (process,) = started
    program = [sys.executable, "-P", "-m", "sepo"] if label == "T-REG" and not is_enabled else ["llamafactory-cli"]
    assert process.words[:-1] == [*program, "train"]
    assert process.options["env"]["LLAMABOARD_ENABLED"] == "1"
    recipe = yaml.safe_load((tmp_path / process.words[-1]).read_text())
    _, found = check_recipe(recipe)
    assert (None if found is None else found.stage) == (None if label == "DPO" else "treg")


@pytest.mark.parametrize("label", ["T-REG", "DPO"])
def test_secrets_are_in_neither_the_preview_nor_the_saved_arguments_of_a_stage(visitor, board, label, tmp_path):
    """They reach the run by its environment; a run of the host's stage is the host's."""
    started = []
    board.setattr(command.subprocess, "Popen", lambda words, **kw: started.append(Process(words, **kw)) or started[-1])
    board.setattr(command, "enabled", lambda: False)
    board.setattr(runner, "is_accelerator_available", lambda: True)
    visitor.choose(label)
    secrets = {"hub_token": "planted-first", "swanlab_api_key": "planted-second"}
    keys = {**json.loads(visitor.get("train.extra_args")), **secrets}
    visitor.set(train__extra_args=json.dumps(keys))
    *_, last = visitor.runner.run_train(visitor.values)
    assert any("Finished." in str(value) for value in last.values())
    (process,) = started
    saved = (tmp_path / process.words[-1]).read_text()
    if label == "DPO":
        assert "planted" in saved
        assert SECRETS not in process.options["env"]
        return
    assert "planted" not in saved
    assert "planted" not in str(list(visitor.runner.preview_train(visitor.values)))
    given = yaml.safe_load(saved) | json.loads(process.options["env"][SECRETS])
    assert {name: given[name] for name in secrets} == secrets
    assert given == common._clean_cmd(visitor.arguments())


def test_saved_arguments_are_loaded_again(visitor):
    visitor.choose("SePO")
    visitor.set(train__config_path="mine.yaml", train__dataset=["tiny_pairs", "more"])
    visitor.runner.save_args(visitor.values)
    loaded = visitor.runner.load_args("en", "mine.yaml")
    for name in ("train.training_stage", "train.extra_args", "train.dataset"):
        assert loaded[visitor.manager.get_elem_by_id(name)] == visitor.get(name)
    assert visitor.arguments()["dataset"] == "tiny_pairs,more"


# During scoring


def test_an_abort_ends_a_run_that_scores_at_once(monkeypatch):
    monkeypatch.setenv("LLAMABOARD_ENABLED", "1")
    seen = []
    before = signal.signal(signal.SIGABRT, lambda *_: seen.append(1))
    try:
        with pytest.raises(SystemExit, match="134"), abortable():
            os.kill(os.getpid(), signal.SIGABRT)
        assert seen == []
        os.kill(os.getpid(), signal.SIGABRT)  # the host's handler again, which waits for the end of a step
        assert seen == [1]
        monkeypatch.delenv("LLAMABOARD_ENABLED")
        with abortable():
            os.kill(os.getpid(), signal.SIGABRT)
        assert seen == [1, 1]
    finally:
        signal.signal(signal.SIGABRT, before)


def test_scoring_moves_the_boards_progress_bar(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(logging.getLogger("sepo"), "propagate", True)
    with open(os.devnull, "w") as nowhere, tqdm(total=40, initial=10, file=nowhere) as bar:
        bar.update(20)
        report_scoring(bar, str(tmp_path))
        assert list(tmp_path.iterdir()) == []  # without the board, no file is written
        monkeypatch.setenv("LLAMABOARD_ENABLED", "1")
        with caplog.at_level("INFO", logger="sepo"):
            report_scoring(bar, str(tmp_path / "out"))
    _, slider, _ = control.get_trainer_info("en", tmp_path / "out", do_train=True)
    assert slider.value == 75.0
    assert slider.label.startswith("Running 30/40: 0:00:0")
    assert "30/40" in caplog.text


def test_sepo_log_lines_reach_the_board(monkeypatch, tmp_path):
    logger = logging.getLogger("sepo")
    for name in ("handlers", "propagate", "level"):  # restored after the test
        monkeypatch.setattr(logger, name, copy.copy(getattr(logger, name)))
    _log_beside_host()  # before a run starts
    handler = host_logging.LoggerHandler(str(tmp_path))
    host_logging.add_handler(handler)
    try:
        _log_beside_host()
        logging.getLogger("sepo.any").info("scoring")
    finally:
        host_logging.remove_handler(handler)
        handler.close()
    assert "scoring" in (tmp_path / constants.RUNNING_LOG).read_text()


# Commands, and names that the host must keep


def test_webui_serves_the_hosts_board(host, capsys):
    served = []
    host.setattr("llamafactory.launcher.launch", lambda: served.append((sys.argv, "SePO" in constants.TRAINING_STAGES)))
    host.setattr(sys, "argv", ["pytest"])
    host.setenv("PATH", os.environ["PATH"])
    assert cli.main(["webui"]) == 0
    assert served == [(["llamafactory-cli", "webui"], True)]
    assert os.environ["PATH"].startswith(str(Path(sys.executable).parent))

    def taken():
        raise OSError("Cannot find empty port in range: 7860-7860.")

    host.setattr("llamafactory.launcher.launch", taken)
    assert cli.main(["webui"]) == 2
    assert "sepo: error: LLaMA Board cannot be served: Cannot find empty port" in capsys.readouterr().err


def test_help_of_webui_imports_nothing_heavy():
    code = (
        "import sys\nfrom sepo.cli import main\n"
        "try:\n    main(['webui', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'gradio', 'llamafactory'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "GRADIO_SERVER_PORT" in done.stdout


def test_the_host_has_the_names_that_the_board_needs():
    assert patch.board_gaps() == []
    assert [finding.good for finding in board_findings()] == [True]
    ledger = Path(sepo.hosts.__file__).with_name("PATCHES.md").read_text()
    for name in (
        "TRAINING_STAGES",
        "STAGES_USE_PAIR_DATA",
        "LOCALES",
        "_clean_cmd",
        "gen_cmd",
        "Popen",
        "create_train_tab",
    ):
        assert name in ledger, name


def without_box(elements):
    """Return the elements of a training tab whose box for extra arguments has another name."""
    return {("other" if name == "extra_args" else name): element for name, element in elements.items()}


def other_parameters():
    """Function without the parameter that is relied on."""


@pytest.mark.parametrize(
    ("module", "name", "value", "gap"),
    [
        (constants, "TRAINING_STAGES", {"DPO": "dpo"}, "TRAINING_STAGES"),
        (constants, "STAGES_USE_PAIR_DATA", set(), "STAGES_USE_PAIR_DATA"),
        (locales, "LOCALES", {}, "no help for extra_args"),
        (common, "_clean_cmd", other_parameters, "_clean_cmd(args)"),
        (runner, "gen_cmd", other_parameters, "gen_cmd(args)"),
        (runner, "Popen", other_parameters, "does not start a run by subprocess.Popen"),
        (interface, "create_train_tab", other_parameters, "create_train_tab(engine)"),
        (interface, "create_train_tab", None, "create_train_tab(engine)"),
    ],
)
def test_an_unsupported_board_is_left_unchanged(host, capsys, module, name, value, gap):
    host.setattr(module, name, value)
    assert any(gap in found for found in patch.board_gaps())
    assert not all(finding.good for finding in board_findings())
    rebound = runner.gen_cmd, common._clean_cmd, interface.create_train_tab
    patch.register(interface)
    assert "sepo: this LLaMA Board does not list sepo's stages: " in capsys.readouterr().err
    assert (runner.gen_cmd, common._clean_cmd, interface.create_train_tab) == rebound
    assert "SePO" not in constants.TRAINING_STAGES


def test_a_board_without_the_elements_lists_the_stages_and_leaves_the_box_alone(host, capsys, tmp_path):
    host.chdir(tmp_path)
    create = interface.create_train_tab
    host.setattr(interface, "create_train_tab", lambda engine: without_box(create(engine)))
    listed, filled = board_findings()
    assert listed.good
    assert not filled.good
    assert "its training tab has no extra_args; use LLaMA-Factory" in filled.text
    patch.register(interface)
    assert "SePO" in constants.TRAINING_STAGES
    patch.filling_gaps()
    assert "does not fill in the keys of a stage: its training tab has no extra_args." in capsys.readouterr().err


def test_a_board_that_cannot_be_built_is_a_finding(host):
    def create_ui():
        raise TypeError("Textbox() got an unexpected keyword argument 'info'")

    host.setattr(interface, "create_ui", create_ui)
    _, finding = board_findings()
    assert not finding.good
    assert "cannot be built (TypeError: Textbox() got an unexpected keyword argument 'info')" in finding.text


def test_a_registered_board_is_a_supported_one(board, tmp_path):
    """After `sepo enable`, `sepo doctor` looks at a board in which the stages are registered."""
    board.chdir(tmp_path)
    assert all(finding.good for finding in board_findings())
    assert os.listdir(tmp_path) == []


def test_the_hosts_own_command_lists_sepo_stages_by_the_import_hook(host):
    """`sepo enable` installs the hook in every new interpreter; `sepo disable` removes it."""
    import llamafactory.webui

    def imported_again():
        host.delitem(sys.modules, interface.__name__)
        return importlib.import_module(interface.__name__)

    host.setattr(llamafactory.webui, "interface", interface)
    host.setattr(sys, "meta_path", list(sys.meta_path))
    assert not hasattr(imported_again(), "_sepo_registered")
    importlib.import_module("sepo._autoload").install()
    assert imported_again()._sepo_registered
    assert "SePO" in constants.TRAINING_STAGES


def test_a_missing_gradio_is_one_line(host, capsys):
    host.setattr("llamafactory.extras.packages.is_gradio_available", lambda: False)
    host.setattr(sys, "argv", ["pytest"])
    host.setenv("PATH", os.environ["PATH"])
    assert cli.main(["webui"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "LLaMA Board requires gradio, which is not installed; run: pip install" in line
