"""Trains a ResNet on images and measures it.

Handwritten digits, bundled, about a minute on a laptop:

  python -m train_loop.main

The 37 breeds of Oxford-IIIT Pet (TFDS downloads them at the first start):

  python -m train_loop.main --dataset=oxford_iiit_pet

Go on with a run that was stopped, measure it again, look at it:

  python -m train_loop.main --workdir=runs/NAME
  python -m train_loop.main --workdir=runs/NAME --mode=evaluate
  python -m train_loop.main --workdir=runs/NAME --mode=compare --with=runs/OTHER
  tensorboard --logdir=runs

Ask it about your own pictures, and ship it:

  python -m train_loop.main --workdir=runs/NAME --mode=predict --images=photos
  python -m train_loop.main --workdir=runs/NAME --mode=export --format=litert

What a model costs in parameters, multiply-adds and memory:

  python -m train_loop.main --mode=summary --model=resnet50 --image_size=224

A recipe sets everything about training that is not given as a flag.
"""

import dataclasses
import sys

import tensorflow as tf
from absl import app, flags, logging

from train_loop.errors import UserError, check_choice, listed
from train_loop.modes import MODES
from train_loop.recipes import RECIPES
from train_loop.settings import Settings, flag_name, to_text

FLAGS = flags.FLAGS
FIELDS = dataclasses.fields(Settings)


def define_flags():
    """Makes a flag of every setting, and one of the mode."""
    modes = [
        f"{name}: {function.__doc__.splitlines()[0]}"
        for name, function in MODES.items()
    ]
    flags.DEFINE_string("mode", "train", " ".join(modes))
    for field in FIELDS:
        is_bool = field.type is bool
        define = flags.DEFINE_bool if is_bool else flags.DEFINE_string
        define(flag_name(field.name), None, help_of(field))


def help_of(field):
    """Returns what a setting is, what it may be and what it is by default."""
    choices, default = field.metadata["choices"], field.metadata["default"]
    if field.name == "recipe":
        choices = ("auto", *RECIPES)
    modes = [f"--mode={name}" for name in field.metadata["modes"]]
    parts = [field.metadata["help"]]
    if modes:
        parts.append(f"For {' and '.join(modes)}.")
    if choices is not None:
        parts.append(f"One of: {listed(choices)}.")
    if default is not None:
        parts.append(f"Default: {to_text(default)}")
        others = {
            name: to_text(recipe.settings.given[field.name])
            for name, recipe in RECIPES.items()
            if field.name in recipe.settings.given
            and recipe.settings.given[field.name] != default
        }
        parts[-1] += "".join(f"; {n}: {text}" for n, text in others.items())
        parts[-1] += "."
    return " ".join(parts)


def check_modes(given):
    """Raises UserError for a setting that the mode has no use for."""
    for field in FIELDS:
        modes = field.metadata["modes"]
        if field.name in given and modes and FLAGS.mode not in modes:
            raise UserError(
                f"--{flag_name(field.name)} is for --mode="
                f"{' or '.join(modes)}, and this is --mode={FLAGS.mode}"
            )


def parse(argv):
    """Parses the command line; a flag that is wrong ends the program."""
    try:
        return FLAGS(argv)
    except flags.Error as error:
        reason = " ".join(str(error).split())
        sys.exit(f"error: {reason}; --help lists all flags")
    except SystemExit:
        # The help was asked for and shown, which absl takes for a failure.
        sys.exit(0)


def main(argv):
    """Runs the mode that the flags ask for; returns the exit status."""
    try:
        if argv[1:]:
            raise UserError(
                f"{argv[1]!r} is not a flag; flags look like --dataset=digits"
            )
        # TFDS and TensorFlow say much that is of no use here.
        if not FLAGS["verbosity"].present:
            logging.set_verbosity(logging.ERROR)
            tf.get_logger().setLevel("ERROR")
        check_choice("--mode", FLAGS.mode, MODES)
        given = {
            field.name: FLAGS[flag_name(field.name)].value
            for field in FIELDS
            if FLAGS[flag_name(field.name)].present
        }
        check_modes(given)
        MODES[FLAGS.mode](Settings(**given))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        hint = "; ".join(["stopped by the keyboard", *error.args])
        print(f"error: {hint}", file=sys.stderr)
        return 130
    return 0


define_flags()

if __name__ == "__main__":
    app.run(main, flags_parser=parse)
