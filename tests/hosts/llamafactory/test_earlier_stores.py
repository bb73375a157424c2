"""Stores that an earlier version wrote are found: their keys and their format are part of what users keep.

`golden/stores.tar.xz` has tiny models, six pairs and three stores, which the version before this package's modules were
regrouped scored under these recipes.
"""

import tarfile
from pathlib import Path

import pytest

from sepo.hosts.llamafactory.recipe import get_train_args, settings_of
from sepo.hosts.llamafactory.workflow import prepared_data

GOLDEN = Path(__file__).with_name("golden") / "stores.tar.xz"
STORES = {
    "token_scores": (
        "2f7d4853558804ba9847f09e9fe316c7",
        {"stage": "sepo", "oracle_model": "oracle", "oracle_base_model": "base"},
    ),
    "token_reward_scores": ("e74a763efc60a508bc48f34f2004c973", {"stage": "treg", "treg_eval_model": "base"}),
    "reference_scores": (
        "8944f01125078486d63ed069b2ac6cef",
        {"stage": "minor_dpo", "ref_model": "base", "ref_precompute": True},
    ),
}


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(GOLDEN) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("what", STORES)
def test_a_store_written_before_is_found(earlier, what):
    key, keys = STORES[what]
    models = {name: str(earlier / value) if value in ("oracle", "base") else value for name, value in keys.items()}
    recipe = {
        "model_name_or_path": str(earlier / "policy"), "template": "chatml", "dataset_dir": str(earlier / "data"),
        "dataset": "tiny_pairs", "cutoff_len": 128, "do_train": True, "finetuning_type": "lora", "lora_rank": 4,
        "token_scores_dir": str(earlier / "scores"), "output_dir": str(earlier / "out"), "report_to": "none",
        "use_cpu": True, "max_steps": 1, "overwrite_cache": True, "preprocessing_num_workers": 1, **models,
    }  # fmt: skip
    store = earlier / "scores" / key
    before = {file.name: file.read_bytes() for file in store.iterdir()}
    model_args, data_args, training_args, finetuning_args, _ = get_train_args(recipe)
    data = prepared_data(
        settings_of(finetuning_args), model_args=model_args, data_args=data_args, training_args=training_args
    )
    assert data.stores == {what: {"train": str(store)}}
    assert {file.name: file.read_bytes() for file in store.iterdir()} == before
    stores = {path.name for path in (earlier / "scores").iterdir() if not path.name.startswith(".")}
    assert stores == {known for known, _ in STORES.values()}  # nothing was scored anew
