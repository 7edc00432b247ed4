"""`modality.cache: disk` through the command: the second run decodes nothing."""

from lerobot_ext.commands import train
from lerobot_ext.modality import decoding


def test_a_second_run_finds_the_files_of_the_first(write_yaml, tmp_path, monkeypatch):
    calls = []
    original = decoding.read_frames
    monkeypatch.setattr(decoding, "read_frames", lambda *args: calls.append(args) or original(*args))
    modality = {"resize": [32, 48], "cache": "disk", "cache_dir": str(tmp_path / "frames")}
    path = write_yaml(use_depth_image=True, modality=modality, save_checkpoint=False, steps=1)
    train.main([f"--config_path={path}", f"--output_dir={tmp_path / 'first'}"])
    assert calls
    calls.clear()
    train.main([f"--config_path={path}", f"--output_dir={tmp_path / 'second'}"])
    assert not calls


def test_the_bound_is_by_default_what_memory_or_a_disk_can_bear(write_yaml):
    for cache, allowed in train.CACHES.items():
        config = train.parse([f"--config_path={write_yaml(modality={'cache': cache})}"])
        assert config.modality.cache_max_gb == allowed
