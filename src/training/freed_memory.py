"""Memory that a training step frees stays with the process for the next step, where the GNU C library gives it back.

That library returns every large block to the system at once, and the system hands out fresh pages: cleared, and one
interrupt each. On a virtual machine a page costs some 2.4 us, so that a gradient of 154 MB took 90 ms to write for the
first time and 12 ms after that; a quarter of the time of a training on a CPU was the system's.
"""

from __future__ import annotations

import ctypes
import os
import platform

# mallopt's names for its parameters (malloc.h)
TRIM_THRESHOLD, MMAP_MAX = -1, -4
NEVER = -1  # free memory at the top of the heap is not returned, however much it is


def keep_freed_memory() -> bool:
    """Take large blocks from the heap and never shrink it; whether that was done.

    For the rest of the process, whose resident memory then stays at its highest (a few per cent above what it was, as
    blocks of changing sizes leave gaps). Your own MALLOC_* or GLIBC_TUNABLES in the environment win. Other C libraries
    are left alone.
    """
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(MMAP_MAX, 0) and library.mallopt(TRIM_THRESHOLD, NEVER))
