"""`python -m lerobot_ext` is `lerobot-ext`."""

import sys

from lerobot_ext.commands.main import main

sys.exit(main())
