#!/usr/bin/env python
"""`lerobot-ext train` as a script, for servers and for `accelerate launch scripts/train.py …`."""

import sys
from pathlib import Path

# Works from any directory, also with an environment that has LeRobot but not this package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lerobot_ext.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
