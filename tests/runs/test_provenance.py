"""The recipe that a run saves contains no secrets."""

import json

from sepo.runs.provenance import RECIPE_FILE, package_versions, write_provenance


def test_the_file_is_plain_json_with_versions(tmp_path):
    write_provenance(tmp_path, {"stage": "sepo", "hf_hub_token": "s3cret", "path": tmp_path, "note": "ünï\ud800"})
    record = json.loads((tmp_path / RECIPE_FILE).read_text())
    assert "s3cret" not in (tmp_path / RECIPE_FILE).read_text()
    assert record["recipe"]["path"] == str(tmp_path)
    assert record["versions"] == package_versions()
    assert {"python", "sepo", "torch", "transformers"} <= set(record["versions"])
