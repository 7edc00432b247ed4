"""The module that LeRobot's plugin discovery imports; it only registers `lerobot_ext`.

Discovery looks at the names of installed distributions, so this name is fixed by LeRobot
(`lerobot.utils.import_utils.register_third_party_plugins`). Everything lives in `lerobot_ext`.
"""

import lerobot_ext

lerobot_ext.register()
