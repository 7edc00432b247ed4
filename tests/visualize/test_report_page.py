"""The demo's report as a page: with telemetry in its place, with telemetry elsewhere, and without any."""

import shutil

import small_telemetry

from lerobot_ext.commands import report

EPISODE = {"success": True, "block_height_m": 0.02, "peak_force_n": 2.0, "hold_s": 1.0, "reason": "held"}


def test_the_page_shows_the_summary_and_each_episodes_telemetry(press, tmp_path):
    shutil.copytree(press, tmp_path / "rollout_dataset")
    folder = tmp_path / "telemetry"
    small_telemetry.write(folder / "episode_000000.jsonl")
    small_telemetry.write(folder / "episode_000001.jsonl")
    figures = {
        "demonstrations": [EPISODE],
        "evaluations": [EPISODE, EPISODE],
        "losses": [(10, 0.5)],
        "seconds": {"record": 10.0},
        "seconds_total": 60.0,
    }
    plain = report.write(tmp_path, figures).read_text()
    assert "from chunks to motion" not in plain and "control over" not in plain
    page = report.write(tmp_path, figures | {"telemetry_dir": str(folder)}).read_text()
    assert page.count("from chunks to motion") == 2
    assert "control over 2 episodes (merge rtc): 90 ticks, 17.8 % without an action; 8 chunks" in page
