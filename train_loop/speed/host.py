"""What the machine is, and which libraries run on it, in words."""

import importlib.metadata
import os
import platform
import re

from train_loop.environment import read_cpuinfo

# What makes products fast, best first.
FEATURES = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")


def describe_host():
    """Returns {"processor", "cores", "features", "system"} as for JSON."""
    cpuinfo = read_cpuinfo()
    named = re.search(r"model name\s*: (.+)", cpuinfo)
    known = set(cpuinfo.split())
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count()
    return {
        "processor": named[1] if named else platform.machine(),
        "cores": cores,
        "features": [name for name in FEATURES if name in known],
        "system": f"{platform.system()} {platform.release()}",
    }


def versions(*names):
    """Returns {library: version} of those that are installed."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
