"""How a process asks the system for memory."""

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of glibc's mallopt
_KEPT = 2**30  # bytes that may lie unused


def keep_freed_memory() -> None:
    """Let glibc keep what is freed instead of giving it back to the system; elsewhere this does nothing.

    A training step on a CPU frees and asks for the same hundred megabytes again. In a thread that is not the main one,
    where Ray trains, glibc maps them anew each time, and the kernel clears every page: up to a fifth of the step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_MMAP_MAX, 0)
