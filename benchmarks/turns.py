"""Compares the step time of two configurations, alternating step by step.

    python -m benchmarks.turns --second=--fast_paths=false \\
        -- --model=resnet50 --batch_size=32
    python -m benchmarks.turns --first=TF_CPU_ALLOCATOR_USE_BFC=1 \\
        -- --model=resnet50 --precision=mixed_bfloat16

The flags of train_loop.main after `--` are for both; `--first` and `--second`
are flags or environment variables for one alone. Images are noise.

Each configuration is a process that warms up and then runs a step on request,
so that other load on the machine affects both alike. The result is the speedup
of the first: the median of the turns, with the range.
"""

import argparse
import contextlib
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

from tqdm import tqdm

from benchmarks.compare import median_and_range
from benchmarks.programs import ROOT
from train_loop import main as program
from train_loop.benchmark.tasks import TASKS
from train_loop.console import parser_of
from train_loop.errors import UserError
from train_loop.modes.benchmark import settings_to_measure


def read_options(arguments):
    """Returns the parsed command line."""
    parser = parser_of("python -m benchmarks.turns", __doc__)
    add = parser.add_argument
    side = {"type": split, "default": []}
    add("--first", **side, help="--flag=value or VARIABLE=value; repeatable.")
    add("--second", **side, help="The same for the second.")
    add("--what", choices=TASKS, default="train", help="Task.")
    add("--turns", type=int, default=9, help="Number of timed steps.")
    add("flags", nargs="*", help="Flags of train_loop.main, after --.")
    # For child processes.
    add("--waits", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.turns < 1:
        parser.error(f"--turns={options.turns}: must be at least 1.")
    return options


def split(text):
    """Returns the flags and environment variables in a text.

    Raises:
      argparse.ArgumentTypeError: a word is neither of them.
    """
    words = shlex.split(text)
    for word in words:
        if not word.startswith("-") and "=" not in word:
            raise argparse.ArgumentTypeError(
                f"{word!r}: must be --flag=value or VARIABLE=value."
            )
    return words


def main(arguments=None):
    options = read_options(arguments)
    if options.waits:
        serve(options.what, options.flags, sys.stdin)
        return
    with contextlib.ExitStack() as stack:
        sides = [
            stack.enter_context(Side(words, options))
            for words in (options.first, options.second)
        ]
        for side in sides:
            side.warm_up()
        take_turns(sides, options.turns)
    print(describe(*(side.seconds for side in sides)))


class Side:
    """One of the two configurations, in a process that waits for requests.

    Args:
      words: its own flags and environment variables.
      options: the parsed command line.
    """

    def __init__(self, words, options):
        flags = [word for word in words if word.startswith("-")]
        self.environment = dict(
            word.split("=", 1) for word in words if word not in flags
        )
        self.command = [sys.executable, "-m", "benchmarks.turns", "--waits"]
        self.command += [f"--what={options.what}", "--", *options.flags, *flags]
        self.seconds = []

    def __enter__(self):
        self.process = subprocess.Popen(
            self.command,
            cwd=ROOT,
            env={**os.environ, **self.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *raised):
        # The process may have ended without reading its input.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()

    def warm_up(self):
        """Runs the steps that trace, compile and allocate."""
        for _ in range(3):
            self.step()

    def step(self):
        """Runs a step, and returns its seconds.

        Raises:
          SystemExit: the process ended, and printed the reason.
        """
        with contextlib.suppress(BrokenPipeError):
            print(file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(self.process.wait() or 1)
        return float(line)


def take_turns(sides, count):
    """Times a number of steps of each side."""
    for turn in tqdm(range(count), unit="turn", disable=None):
        # The order alternates, because a step can affect the next one.
        for side in sides if turn % 2 else reversed(sides):
            side.seconds.append(side.step())


def describe(first, second):
    """Returns the result as text, from the seconds of all steps."""
    ratio = median_and_range(
        [b / a for a, b in zip(first, second, strict=True)]
    )
    return (
        f"first {statistics.median(first):.4g} s, second "
        f"{statistics.median(second):.4g} s per step; speedup of the first: "
        f"{ratio['median']:.2f}x ({ratio['least']:.2f} to {ratio['most']:.2f} "
        f"in {len(first)} turns)"
    )


def serve(what, flags, lines):
    """Runs a step for each line of the input, and prints its seconds.

    Args:
      what: a key of `TASKS`.
      flags: flags of train_loop.main.
      lines: the input, whose content does not matter.
    """
    output = sys.stdout
    with (
        tempfile.TemporaryDirectory() as folder,
        # Other output of the program goes to the user.
        contextlib.redirect_stdout(sys.stderr),
    ):
        try:
            program.parse(["benchmark", "--mode=benchmark", *flags])
            settings = settings_to_measure(
                program.read_settings(), True, folder
            )
            take = TASKS[what](settings, is_synthetic=True).take
        except UserError as error:
            raise SystemExit(f"error: {error}") from error
        for _ in lines:
            began = time.perf_counter()
            take(1)
            seconds = time.perf_counter() - began
            print(seconds, file=output, flush=True)


if __name__ == "__main__":
    main()
