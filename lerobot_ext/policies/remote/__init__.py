"""Policy type `remote`: config, policy and processors, in the three modules where LeRobot looks for them."""
