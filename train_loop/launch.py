"""Several workers on one machine, to try multi-worker training.

    python -m train_loop.launch --workers=2 -- --workdir=runs/two

starts `python -m train_loop.main --strategy=multi_worker` for each worker, with
the flags after the two hyphens. It prints the output of the first worker, and
the errors of the others with their number.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

from train_loop.console import parser_of
from train_loop.process import count_cores

# Time for the other workers to end after one has failed.
SECONDS_TO_END = 20
# Option of Linux's prctl.
PR_SET_PDEATHSIG = 1


def main(argv):
    """Runs the workers; returns the exit status of the first that failed."""
    parser = parser_of("python -m train_loop.launch", __doc__)
    parser.add_argument(
        "--workers", type=int, default=2, help="Number of workers. Default: 2."
    )
    parser.add_argument(
        "flags", nargs="*", help="Flags of train_loop.main, after --."
    )
    options = parser.parse_args(argv[1:])
    if options.workers < 1:
        parser.error(f"--workers={options.workers}: must be at least 1.")
    workers = []
    # Before workers start: signals to this process do not reach them.
    _forward_signals(workers)
    try:
        threads = start(workers, options.workers, options.flags)
        status = wait(workers)
    finally:
        for worker in workers:
            worker.kill()
    for thread in threads:
        # For the last lines; a child of the worker may keep the pipe open.
        thread.join(timeout=5)
    return status


def start(workers, count, flags):
    """Starts workers and adds their processes to a list, the chief's first.

    Each runs in its own session, so that signals of a terminal arrive only
    here.

    Returns:
      Threads that print the errors of all workers but the chief.
    """
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(count)]
    # More threads than cores would be slower.
    threads = max(count_cores() // count, 1)
    for number in range(count):
        task = {"type": "worker", "index": number}
        config = {"cluster": {"worker": addresses}, "task": task}
        workers.append(
            subprocess.Popen(
                [sys.executable, "-m", "train_loop.main"]
                + ["--strategy=multi_worker", *flags],
                env={
                    "TF_NUM_INTRAOP_THREADS": str(threads),
                    **os.environ,
                    "TF_CONFIG": json.dumps(config),
                },
                stdout=subprocess.DEVNULL if number else None,
                stderr=subprocess.PIPE if number else None,
                start_new_session=True,
                preexec_fn=_end_with_parent,
                text=True,
            )
        )
    threads = [
        threading.Thread(target=show, args=(number, each.stderr), daemon=True)
        for number, each in enumerate(workers[1:], start=1)
    ]
    for thread in threads:
        thread.start()
    return threads


def _end_with_parent():
    """Makes Linux stop a worker when this process is killed."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_ports(count):
    """Returns numbers of unused ports."""
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            for _ in range(count)
        ]
        return [each.getsockname()[1] for each in sockets]


def show(number, stream):
    """Prints the lines of a worker, with its number."""
    for line in stream:
        print(f"worker {number}: {line}", end="", file=sys.stderr)


def _forward_signals(workers):
    """Forwards signals to the workers.

    Signals that this process ignores, as under nohup, they ignore as well.
    """

    def forward(number, _):
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, forward)


def wait(workers):
    """Waits for all workers; for `SECONDS_TO_END` after one has failed.

    Returns:
      Exit status of the first that failed, as in a shell, or 0.
    """
    failed, deadline = 0, None
    while any(worker.poll() is None for worker in workers):
        if deadline is None:
            failed = next((w.returncode for w in workers if w.returncode), 0)
            if failed:
                deadline = time.monotonic() + SECONDS_TO_END
        elif time.monotonic() > deadline:
            for worker in workers:
                worker.kill()
        time.sleep(0.1)
    failed = failed or next((w.returncode for w in workers if w.returncode), 0)
    # Killed by a signal.
    return 128 - failed if failed < 0 else failed


if __name__ == "__main__":
    sys.exit(main(sys.argv))
