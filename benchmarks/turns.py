"""Times two settings of the program, a step each in turn.

    python -m benchmarks.turns --second=--fast_paths=false \\
        -- --model=resnet50 --batch_size=32
    python -m benchmarks.turns --first=TF_CPU_ALLOCATOR_USE_BFC=1 \\
        -- --model=resnet50 --precision=mixed_bfloat16

Behind the two hyphens stand flags of train_loop.main for both; `--first` and
`--second` hold more of them, or variables of the environment, for one alone.
Images are noise.

Each of the two is a process that warms up, waits, and takes a step when it is
told to: what else the machine does strikes both alike. Told is how many times
as fast the first is, as the median of the turns, with the ends.
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

from benchmarks.compare import spread
from benchmarks.programs import ROOT
from train_loop import main as program
from train_loop.benchmark.tasks import TASKS
from train_loop.console import parser_of
from train_loop.errors import UserError
from train_loop.modes.benchmark import settings_to_measure


def read_options(arguments):
    """Returns what the command line says."""
    parser = parser_of("python -m benchmarks.turns", __doc__)
    add = parser.add_argument
    side = {"type": split, "default": []}
    add("--first", **side, help="--flag=value or VARIABLE=value, or several.")
    add("--second", **side, help="The same for the other one.")
    add("--what", choices=TASKS, default="train", help="What is done.")
    add("--turns", type=int, default=9, help="Timed steps of each.")
    add("flags", nargs="*", help="Those of train_loop.main, behind --.")
    # What a process of its own is told.
    add("--waits", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.turns < 1:
        parser.error(f"--turns={options.turns}: take at least 1")
    return options


def split(text):
    """Returns the flags and variables of a side.

    Raises:
      argparse.ArgumentTypeError: a word is neither.
    """
    words = shlex.split(text)
    for word in words:
        if not word.startswith("-") and "=" not in word:
            raise argparse.ArgumentTypeError(
                f"{word!r} is neither --flag=value nor VARIABLE=value"
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
    print(described(*(side.seconds for side in sides)))


class Side:
    """One of two settings, in a process that waits to be told to take a step.

    Args:
      words: flags and variables of this one alone.
      options: what the command line says.
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
        # It may be gone, with a line that it never read.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()

    def warm_up(self):
        """Takes the steps that trace, compile and allocate."""
        for _ in range(3):
            self.step()

    def step(self):
        """Takes a step; returns the seconds that it took.

        Raises:
          SystemExit: the process has ended; it has said why.
        """
        with contextlib.suppress(BrokenPipeError):
            print(file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(self.process.wait() or 1)
        return float(line)


def take_turns(sides, count):
    """Times so many steps of each side."""
    for turn in tqdm(range(count), unit="turn", disable=None):
        # Who goes first changes: a step may leave something to the next one.
        for side in sides if turn % 2 else reversed(sides):
            side.seconds.append(side.step())


def described(first, second):
    """Returns what is told of the seconds of all steps of the two."""
    ratio = spread([b / a for a, b in zip(first, second, strict=True)])
    return (
        f"first {statistics.median(first):.4g} s, second "
        f"{statistics.median(second):.4g} s for a step; the first is "
        f"{ratio['median']:.2f} times as fast ({ratio['least']:.2f} to "
        f"{ratio['most']:.2f} in {len(first)} turns)"
    )


def serve(what, flags, lines):
    """Takes a step for each line, and prints the seconds that it took.

    Args:
      what: one of `TASKS`.
      flags: of train_loop.main.
      lines: what tells it.
    """
    answers = sys.stdout
    with (
        tempfile.TemporaryDirectory() as folder,
        # The program's own words are for the user.
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
            print(seconds, file=answers, flush=True)


if __name__ == "__main__":
    main()
