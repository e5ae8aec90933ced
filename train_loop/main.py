"""The command line: flags -> settings -> a mode.

Nothing here needs TensorFlow, which takes seconds to import: help, and what is
wrong with a flag, are there at once.
"""

import contextlib
import dataclasses
import os
import re
import signal
import sys

from absl import flags, logging

from train_loop import console, process
from train_loop.errors import UserError, check_choice, nearest, resource_error
from train_loop.help import help_text
from train_loop.modes import MODES
from train_loop.process import StoppedError, exit_on_second_signal
from train_loop.settings import (
    OLD_NAMES,
    REMOVED,
    Settings,
    flag_name,
    warn_once,
)

FLAGS = flags.FLAGS
FIELDS = dataclasses.fields(Settings)

# Ways to ask for help -> what about, if nothing is said.
HELP = {"--help": "", "-help": "", "-h": "", "--helpfull": "all"}


def _define_flags():
    """Makes a flag of every setting, and one of the mode."""
    flags.DEFINE_string("mode", "train", "What to do.")
    for field in FIELDS:
        is_bool = field.type is bool
        define = flags.DEFINE_bool if is_bool else flags.DEFINE_string
        define(flag_name(field.name), None, "See --help.")


def _help_topic(arguments):
    """Returns what --help is asked about; None where it is not asked for."""
    for argument in arguments:
        name, _, topic = argument.partition("=")
        if name in HELP:
            return topic or HELP[name]
    return None


def parse(argv):
    """Parses the command line.

    Raises:
      UserError: it has a flag that there is none of, or something else.
    """
    try:
        rest = FLAGS(_current_arguments(argv))[1:]
    except flags.UnrecognizedFlagError as error:
        name = error.flagname
        name = name if name in REMOVED else name.removeprefix("no")
        if name in REMOVED:
            _, advice = REMOVED[name]
            raise UserError(f"--{name}: removed. {advice}") from error
        hint = nearest(error.flagname, FLAGS)
        raise UserError(
            f"--{error.flagname} is no flag{hint} --help names all"
        ) from error
    except flags.Error as error:
        reason = " ".join(str(error).removeprefix("ERROR:: ").split())
        raise UserError(f"{reason}; --help explains all flags") from error
    if rest:
        raise UserError(
            f"{rest[0]!r} is not a flag; flags look like --dataset=digits"
        )


def _current_arguments(argv):
    """Returns the arguments with the files of flags among them read.

    Earlier names of flags get the current ones, with a warning unless they
    stand in a file: the `flags.txt` of an earlier run has them for good. It
    also may have removed flags whose value is what happens today.
    """
    dropped = {f"--{name}={text}" for name, (text, _) in REMOVED.items()}
    program, *given = argv
    arguments = FLAGS.read_flags_from_files(given, force_gnu=False)
    return [
        program,
        *(
            _with_new_name(argument, warns=argument in given)
            for argument in arguments
            if argument in given or argument not in dropped
        ),
    ]


def _with_new_name(argument, warns):
    """Returns an argument with the current name of its flag."""
    flag, *value = argument.split("=", 1)
    dashes, no, old = re.fullmatch("(-{0,2})(no)?(.*)", flag).groups()
    if not dashes or old not in OLD_NAMES:
        return argument
    if warns:
        warn_once(f"--{old}: renamed to --{OLD_NAMES[old]}. Use the new name.")
    return "=".join([f"{dashes}{no or ''}{OLD_NAMES[old]}", *value])


def read_settings():
    """Returns the `Settings` that the flags give."""
    given = {
        field.name: FLAGS[flag_name(field.name)].value
        for field in FIELDS
        if FLAGS[flag_name(field.name)].present
    }
    for field in FIELDS:
        modes = field.metadata["modes"]
        if field.name in given and modes and FLAGS.mode not in modes:
            raise UserError(
                f"--{flag_name(field.name)} is for --mode="
                f"{' or '.join(modes)}, and this is --mode={FLAGS.mode}"
            )
    return Settings(**given)


def _import_mode(name):
    """Returns the function of a mode, with all that it needs."""
    if not MODES[name].takes_tensorflow:
        return MODES[name].function
    process.import_tensorflow()
    import tensorflow as tf

    # TFDS and TensorFlow say much that is of no use here.
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)
        tf.get_logger().setLevel("ERROR")
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        # Nor are the bars that Keras draws of downloads, into files.
        tf.keras.utils.disable_interactive_logging()
    return MODES[name].function


def main(argv):
    """Runs the mode that the flags ask for; returns the exit status."""
    try:
        with console.exit_on_interrupt():
            topic = _help_topic(argv[1:])
            if topic is not None:
                print(help_text(topic), end="")
                return 0
            parse(argv)
            if FLAGS.recipe == "help":
                FLAGS.mode = "recipes"
            check_choice("--mode", FLAGS.mode, MODES)
            settings = read_settings()
            run_mode = _import_mode(FLAGS.mode)
        with exit_on_second_signal():
            run_mode(settings)
    except UserError as error:
        # Names of files and classes in it may hold any characters.
        print(console.printable(f"error: {error}"), file=sys.stderr)
        return 1
    except StoppedError as error:
        # Perhaps by the end of the terminal that would show it.
        with contextlib.suppress(OSError):
            print(f"error: {error}", file=sys.stderr, flush=True)
        return error.status
    except KeyboardInterrupt:
        print("error: stopped by the keyboard", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Who read it has seen enough, as `| head` has.
        console.discard_output(sys.stdout)
        return 128 + signal.SIGPIPE
    except Exception as error:
        line = resource_error(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 1
    return 0


_define_flags()


def run_program():
    """Runs the program and ends the process with its exit status."""
    console.prepare_streams()
    # All charts are drawn into files. With a backend that is not installed,
    # such as a notebook's, matplotlib cannot even be imported.
    os.environ["MPLBACKEND"] = "agg"
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    run_program()
