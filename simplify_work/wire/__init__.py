"""What both sides of a remote policy agree on: messages, bytes, addresses, errors; no torch and no LeRobot."""
