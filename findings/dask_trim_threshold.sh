#!/usr/bin/env bash
# dask and distributed 2026.8.0 with numpy 2.4.6 on glibc: a worker's arrays are new memory each time.
#
# The process that starts a worker (its nanny) puts MALLOC_TRIM_THRESHOLD_=65536 into the worker's
# environment. In glibc a program that sets this threshold also switches off the adjustment of the
# one above which blocks are mapped one by one, which stays at 128 KiB instead of growing with what
# was freed. So each temporary array of some megabytes is mapped, cleared by the kernel page by page,
# and given back. Page faults in 100 steps of x = tanh(1.01 x) + 0.1, x of 750,000 float32 (3 MB, 733
# pages; a step makes three arrays), after ten steps that are not counted:
#     this process:                                                  71,650 (about one array a step)
#     the worker of a LocalCluster as it is:                        219,902 (every array)
#     the same with MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_
#     set to 512 MiB and 1 GiB in the environment of its parent:          0
#
# Why it matters: training many small networks side by side, one lane a seed, makes such arrays in
# every elementwise operation. There half of a worker's time went into the kernel (44 of 100 s, 19
# million page faults), so that a study on a cluster took twice the processor time of the same study
# on one machine, and nothing said why. What the environment already has is kept by the nanny, so
# two exported variables are the cure, if memory that is not given back is no concern.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q numpy==2.4.6 dask==2026.8.0 distributed==2026.8.0 || exit 2
unset MALLOC_TRIM_THRESHOLD_ MALLOC_MMAP_THRESHOLD_
cat > "$folder/faults.py" <<'END'
import os
import resource
import sys

import numpy as np
from distributed import Client, LocalCluster

PAGES = 750_000 * 4 // resource.getpagesize()  # of an array


def faults(count=100):
    """Page faults of so many steps, and what the environment says."""
    x = np.ones(750_000, np.float32)
    for step in range(10 + count):
        if step == 10:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        x = np.tanh(x * 1.01) + 0.1
    after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    return after - before, os.environ.get("MALLOC_TRIM_THRESHOLD_")


def in_worker():
    own = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0"}
    with LocalCluster(**own) as cluster, Client(cluster) as client:
        return client.submit(faults, pure=False).result()


if __name__ == "__main__":
    own, (worker, given) = faults()[0], in_worker()
    os.environ["MALLOC_TRIM_THRESHOLD_"] = str(2**29)
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**30)
    kept, exported = in_worker()
    print(f"this process: {own}; a worker: {worker}, {given}; with variables: {kept}, {exported}")
    every = 100 * 3 * PAGES
    holds = (given, exported) == ("65536", str(2**29))
    sys.exit(0 if holds and worker > 0.95 * every and own < 0.7 * every and kept < 0.05 * every else 1)
END
cd "$folder" && "$folder/venv/bin/python" faults.py
