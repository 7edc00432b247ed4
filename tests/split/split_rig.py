"""What the tests of a run in two processes share: the command of a small inference process."""

import sys
from pathlib import Path

SMALL_SERVER = [sys.executable, str(Path(__file__).with_name("small_server.py"))]
