import json

import pytest

from lerobot_ext.virtual.tiny_vlm import make_tiny_vlm, smolvla_overrides


def test_is_made_once(tmp_path):
    path = make_tiny_vlm(tmp_path / "vlm")
    before = (path / "config.json").stat().st_mtime_ns
    assert make_tiny_vlm(path) == path
    assert (path / "config.json").stat().st_mtime_ns == before
    assert {"config.json", "processor_config.json", "tokenizer.json"} <= {p.name for p in path.iterdir()}


def test_overrides_are_a_policy_section(tmp_path):
    section = smolvla_overrides(tmp_path)
    assert json.loads(json.dumps(section))["vlm_model_name"] == str(tmp_path)


def test_size_that_does_not_fit_the_patches_is_refused(tmp_path):
    with pytest.raises(ValueError, match="multiple of 64"):
        make_tiny_vlm(tmp_path / "vlm", image_size=50)
