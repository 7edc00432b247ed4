"""The GPU's side of a remote policy: checkpoints, the policy's runner, sessions, the socket's loop."""
