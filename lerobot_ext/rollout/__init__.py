"""How chunks become motion: the inference engine `async`, its action queue, merge rules, checks and telemetry.

`config` is registered with LeRobot by `compat`; everything else is imported when an engine is made.
"""
