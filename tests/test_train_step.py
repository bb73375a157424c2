"""The benchmarks of the training step: TRL's process, the whole cost, and the figures that pages quote."""

import importlib
import json
import math
import re
import sys
from pathlib import Path
from statistics import median

import pytest

from sepo.errors import SepoError
from tests.support.recipes import run, sepo_recipe

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
whole_cost = importlib.import_module("whole_cost")
trl_process = importlib.import_module("trl_process")

TASK = {"threads": 1}
# Stands in for the interpreter: it is started with the child's script, which it ignores.
ANSWERS = """#!{python}
import json, os, sys
print(json.dumps({{"versions": {{"trl": "1"}}, "task": json.loads(sys.stdin.readline())}}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if "step" in request:
        answer = {{"loss": request["step"] + 0.5}}
    elif "settle" in request:
        answer = {{}}
    else:
        answer = {{"peak_memory_bytes": sum(request["peak"]) + int(os.environ["MALLOC_ARENA_MAX"])}}
    print(json.dumps(answer), flush=True)
"""


def interpreter(folder, text):
    file = folder / "python"
    file.write_text(text)
    file.chmod(0o755)
    return file


def test_trl_computes_a_step_when_it_is_requested(tmp_path):
    python = interpreter(tmp_path, ANSWERS.format(python=sys.executable))
    with trl_process.started(python, TASK) as child:
        contender = trl_process.TrlDpo(child, python, TASK)
        assert contender.facts == {"versions": {"trl": "1"}}
        assert [contender.step(batch) for batch in (2, 0)] == [2.5, 0.5]
        assert contender.settle() is None
        assert contender.peak_memory([3, 4]) == 8  # in a fresh process, which gives freed memory back
        assert contender.step(1) == 1.5
    assert child.process.returncode == 0


def test_a_failed_process_of_trl_is_one_line(tmp_path):
    failing = interpreter(tmp_path, "#!/bin/sh\necho Traceback >&2\necho \"No module named 'trl'\" >&2\nexit 3\n")
    with (
        pytest.raises(SepoError, match=r"^the process of TRL ended with status 3: No module named 'trl'$"),
        trl_process.started(failing, TASK),
    ):
        pass


def pair(prompts, labels=((-100, -100, 7), (-100, -100, 8, 9))):
    return {
        **{f"{side}_input_ids": list(ids) for side, ids in zip(("chosen", "rejected"), prompts, strict=True)},
        **{f"{side}_labels": list(row) for side, row in zip(("chosen", "rejected"), labels, strict=True)},
    }


def test_rows_for_trl_have_one_prompt():
    row = pair([(1, 2, 7), (1, 2, 8, 9)])
    assert trl_process.encoded(row) == {"prompt_ids": [1, 2], "chosen_ids": [7], "rejected_ids": [8, 9]}
    with pytest.raises(SepoError, match="another prompt for each response"):
        trl_process.encoded(pair([(1, 2, 7), (1, 3, 8, 9)]))


@pytest.mark.parametrize(("loss", "fits"), [(0.69155, True), (0.6921, False), (math.nan, False)])
def test_another_loss_than_the_hosts_is_an_error(loss, fits):
    losses = {"host_dpo": 0.69151, "trl_dpo": loss}
    result = {"contenders": [{"name": name, "first_batch_loss": value} for name, value in losses.items()]}
    if fits:
        trl_process.check(result)
    else:
        with pytest.raises(SepoError, match="the same loss is expected"):
            trl_process.check(result)


SECONDS = {"host_dpo": 8.0, "dpo": 4.0, "sepo": 3.0, "scoring": 1.0, "optimizer_step": 16.0}
SETTING = {"baseline": "host_dpo", "pairs": 100, "share": 0.5, "oracle_epochs": 2, "pairs_per_update": 16}


def test_the_whole_cost_by_hand():
    cost = whole_cost.costs(SECONDS, **SETTING)
    # an update is 1 s per pair: oracle 0.5 * 100 * 2 * 5, scores 100 * 1, policies 100 * 4 and 100 * 9
    assert cost == {"oracle": 500, "scoring": 100, "sepo": 400, "dpo": 900, "paid_after_runs": 2}
    assert [whole_cost.total(cost, "sepo", k) for k in (1, 2)] == [1000, 1400]
    assert [whole_cost.total(cost, "dpo", k) for k in (1, 2)] == [900, 1800]


@pytest.mark.parametrize(("dpo", "runs"), [(9.01, 1), (6.0, 2), (5.99, 3), (3.5, 12), (3.0, None), (2.0, None)])
def test_the_oracle_has_paid_at_the_first_run_that_is_not_dearer(dpo, runs):
    cost = whole_cost.costs({**SECONDS, "host_dpo": dpo}, **SETTING)
    assert cost["paid_after_runs"] == (math.ceil(6 / (dpo - 3)) if dpo > 3 else None) == runs


def test_seconds_per_pair_are_over_all_rounds():
    entries = [{"name": "sepo", "seconds": [1.0, 5.0]}, {"name": "optimizer_step", "seconds": [0.5, 0.7]}]
    found = whole_cost.per_pair({"rounds": [{"pairs": 2}, {"pairs": 2}], "contenders": entries})
    assert found == {"sepo": 1.5, "optimizer_step": pytest.approx(0.6)}


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("whole_cost.py", ["--oracle-share", "1.5"], "--oracle-share is 1.5; a number in (0, 1] is expected"),
        ("whole_cost.py", ["--pairs", "0"], "--pairs is 0; a number above 0 is expected"),
        ("train_step.py", ["--trl", "/no/python", "--dtype", "fp32"], "--trl /no/python is no interpreter"),
        ("train_step.py", ["--trl", "/no/python"], "--trl with --dtype bf16"),
        ("train_step.py", ["--trl", "/p", "--dtype", "fp32", "--stages", "sepo,dpo"], "--trl with --stages sepo,dpo"),
    ],
)
def test_invalid_options_are_one_line(script, words, message, tmp_path, capsys):
    for name in ("dataset_info.json", "dpo_en_demo.json"):
        (tmp_path / name).write_text("{}")
    module = importlib.import_module(Path(script).stem)
    with pytest.raises(SystemExit) as ended:
        module.main([*words, "--data-dir", str(tmp_path)])
    assert message in str(ended.value)
    assert "\n" not in str(ended.value)


def recorded(name):
    (file,) = (BENCHMARKS / "results").glob(f"{name}-x86_64.json")
    return json.loads(file.read_text())


def test_the_readme_quotes_the_results():
    """The speed of SePO's step over both DPOs, its memory above the model, and the whole cost."""
    sentence = (
        r"is ([\d.]+) x \(short prompts\) and ([\d.]+) x \(long prompts\) as fast as LLaMA-Factory's DPO and "
        r"([\d.]+) x as TRL's, with at most (\d+) % of DPO's peak memory above the model\. .* "
        r"takes (\d+) % of the time of LLaMA-Factory's DPO, and is ahead of sepo's own DPO from (\d+) policies on"
    )
    found = re.search(sentence, " ".join((ROOT / "README.md").read_text().split()))
    assert found, sentence
    short, long = (
        {one["name"]: one for one in recorded(f"train_step-{name}-fp32")["contenders"]}
        for name in ("dpo_en_demo", "hh_harmless")
    )
    both = zip(long["trl_dpo"]["seconds"], long["sepo"]["seconds"], strict=True)
    speeds = [short["sepo"]["ratio_to_host_dpo"], long["sepo"]["ratio_to_host_dpo"], median(a / b for a, b in both)]
    memory = max(each["sepo"]["peak_memory_bytes"] / each["host_dpo"]["peak_memory_bytes"] for each in (short, long))
    costs = recorded("whole_cost-hh_harmless")["costs"]
    one = whole_cost.total(costs["host_dpo"], "sepo", 1) / whole_cost.total(costs["host_dpo"], "dpo", 1)
    whole = (math.ceil(100 * memory), round(100 * one), costs["dpo"]["paid_after_runs"])
    assert found.groups() == (*(f"{speed:.1f}" for speed in speeds), *map(str, whole))


@pytest.mark.host
def test_scores_and_updates_are_measured_beside_the_stages(world, tmp_path):
    recipe = sepo_recipe(world, tmp_path / "out", oracle_model=None, oracle_base_model=None)
    code = (
        "import json, sys\n"
        f"sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "import whole_cost\n"
        "from sepo.hosts.llamafactory.recipe import quiet_on_one_device\n"
        "quiet_on_one_device()\n"
        "from sepo.hosts.llamafactory.bench.run import measure\n"
        f"recipe = json.loads({json.dumps(recipe)!r})\n"
        "result = measure(recipe, rounds=2, names=whole_cost.STAGES, memory=False, externals=whole_cost.opened(None))\n"
        f"open({str(tmp_path / 'result.json')!r}, 'w').write(json.dumps([result, whole_cost.per_pair(result)]))\n"
    )
    run([sys.executable, "-c", code], cwd=tmp_path)
    result, seconds = json.loads((tmp_path / "result.json").read_text())
    names = [entry["name"] for entry in result["contenders"]]
    assert names == ["host_dpo", "dpo", "sepo", "scoring", "optimizer_step"]
    assert all(len(entry["seconds"]) == 2 for entry in result["contenders"])
    assert result["contenders"][-1]["first_batch_loss"] is None
    assert all(value > 0 for value in seconds.values())
    assert result["model"]["trainable_parameters"] < result["model"]["parameters"]
