"""What this process has cost so far: seconds, and memory at its most.

Nothing here needs TensorFlow, so that programs without it can be measured too.
"""

import os
import pathlib
import re
import time


def age():
    """Returns the seconds since the process began, the interpreter's included.

    None where the system does not tell.
    """
    try:
        # Behind the name, which may hold anything, brackets too.
        text = pathlib.Path("/proc/self/stat").read_text()
        ticks = int(text.rpartition(")")[2].split()[19])
        began = ticks / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began
    except (OSError, AttributeError):
        return None


def peak_memory():
    """Returns the bytes of main memory that the process took at its most.

    None where the system does not tell.
    """
    try:
        # Not ru_maxrss: a process inherits that from the one that started it.
        status = pathlib.Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else None
