"""Functions that run in a forked child and are killed there: at a random moment, or at the n-th step on the disk."""

import os
import signal
import time
import traceback
from collections.abc import Callable

STEPS = ("replace", "unlink", "rmdir")


def die_at(step: int) -> None:
    """Let this process kill itself instead of taking its `step`-th step (from 1) that changes a folder."""
    taken = 0

    def counted(original):
        def take(*args, **kwargs):
            nonlocal taken
            taken += 1
            if taken == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return take

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))


def run(function: Callable[[], None], after_s: float | None = None) -> bool:
    """Run `function` in a forked child.

    Args:
        function: What to run; an exception fails the test.
        after_s: Kill the child so many seconds after it began; None waits for its end.

    Returns:
        Whether it came to its end; False if it was killed.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    if after_s is not None:
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0, "the child failed; its traceback is above"
    return True
