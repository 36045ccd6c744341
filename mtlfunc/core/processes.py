"""Processes that another one started."""

import functools
import multiprocessing
import os
import threading
import time


@functools.cache
def follow_parent(process: int) -> None:
    """End this process within a second of the one that started it, even if that was killed.

    The workers of a process pool hold both ends of the pipes that they read, so nothing else tells
    them that the parent is gone.

    Args:
        process: `os.getpid()`, since a forked process has the parent's cache and not its threads.
    """
    parent, number = multiprocessing.parent_process(), os.getppid()
    assert parent is not None

    def follow() -> None:
        # a forked sibling may keep the pipe open that `join` waits for; Windows keeps the number;
        # loky's workers have no such pipe
        while os.getppid() == number and (parent.sentinel is None or parent.is_alive()):
            time.sleep(1.0) if parent.sentinel is None else parent.join(1.0)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
