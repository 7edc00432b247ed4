"""The robot's process never holds the policy's weights: acceptance 4.

LeRobot itself imports the modules of all its policies with `lerobot.policies`, so what is asked is whether a policy
was made and whether its checkpoint was opened.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import checkpoints
from servers import ENV, ServerProcess

ROBOT = """
import gc, json, re, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
import lerobot_ext
lerobot_ext.register()
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.rollout.inference.sync import SyncInferenceEngine
import checkpoints

where, checkpoint = sys.argv[1:]
joints = [f"joint{i}.pos" for i in range(checkpoints.STATE)]
if where == "local":
    config, path = PreTrainedConfig.from_pretrained(checkpoint), checkpoint
else:
    config, path = make_policy_config("remote", address=where, timeout_s=60), None
policy = get_policy_class(config.type).from_pretrained(path, config=config)
engine = SyncInferenceEngine(
    policy=policy, dataset_features={"action": {"names": joints}}, ordered_action_keys=joints, task="",
    device="cpu", robot_type="so100", **dict(zip(("preprocessor", "postprocessor"),
    make_pre_post_processors(config, pretrained_path=path))),
)
action = engine.get_action(checkpoints.observation(5))
print(json.dumps({
    "action": action.tolist(),
    # Not ru_maxrss, which a process inherits from the one that started it.
    "peak_bytes": 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1)),
    "made": [type(each).__name__ for each in gc.get_objects() if isinstance(each, PreTrainedPolicy)],
    "parameters": sum(each.numel() for each in policy.parameters()),
    "opened": [path for path in opened if path.startswith(checkpoint)],
}))
"""


def robot(where: str, checkpoint) -> dict:
    """One tick of LeRobot's loop in a process of its own."""
    env = os.environ | ENV | {"PYTHONPATH": os.path.dirname(checkpoints.__file__)}
    result = subprocess.run(
        [sys.executable, "-c", ROBOT, where, str(checkpoint)],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_the_robots_process_is_smaller_by_the_checkpoint(tmp_path):
    path = checkpoints.make_act(
        tmp_path / "wide", dim_model=1024, dim_feedforward=9216, n_heads=8, n_encoder_layers=4, use_vae=False
    )
    size = (path / "model.safetensors").stat().st_size
    assert size > 500e6
    local = robot("local", path)
    with ServerProcess(path) as server:
        remote = robot(server.address, path)
    assert local["peak_bytes"] - remote["peak_bytes"] > size
    assert (local["made"], bool(local["opened"])) == (["ACTPolicy"], True)
    assert (remote["made"], remote["parameters"], remote["opened"]) == (["RemotePolicy"], 0, [])
    assert max(abs(a - b) for a, b in zip(local["action"], remote["action"], strict=True)) < 1e-5
