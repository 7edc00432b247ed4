"""A robot's process without a robot: starts an inference process, uses it through shared memory, and waits to be killed."""

import sys
from pathlib import Path

import numpy as np

from lerobot_ext.rollout.companion import InferenceProcess
from simplify_work.local.client import PolicyClient
from simplify_work.wire.private import PrivateFolder

folder = PrivateFolder()
process = InferenceProcess(
    [sys.executable, str(Path(__file__).with_name("small_server.py"))], folder, Path(sys.argv[1])
)
process.start()
client = PolicyClient(folder.address, timeout_s=60, connect_timeout_s=60)
client.infer({"observation.state": np.zeros(6, np.float32)})
sys.stdout.write(f"{process.pid} {folder.path}\n")
sys.stdout.flush()
while True:
    client.infer({"observation.state": np.zeros(6, np.float32)})
