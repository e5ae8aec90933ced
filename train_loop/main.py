"""The command line: flags -> settings -> a mode.

Help and errors in flags appear at once: nothing here imports TensorFlow, which
takes seconds.
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

# Help flags -> their default topic.
HELP = {"--help": "", "-help": "", "-h": "", "--helpfull": "all"}
FALLBACK_HINT = " Run --help for all flags."
# Flags of other programs -> what to use here.
HABITS = {
    **dict.fromkeys(("lr", "lr0", "base_lr"), "Use --learning_rate."),
    **dict.fromkeys(("wd", "decay"), "Use --weight_decay."),
    **dict.fromkeys(("bs", "batch", "b"), "Use --batch_size."),
    **dict.fromkeys(
        ("resume", "output", "output_dir", "out", "logdir"),
        "Use --workdir=FOLDER: an existing run there resumes.",
    ),
    **dict.fromkeys(
        ("pretrained", "checkpoint_path", "initial_checkpoint"),
        "Use --weights=imagenet, timm/NAME or a file.",
    ),
    **dict.fromkeys(
        ("amp", "fp16", "bf16", "half", "mixed_precision", "dtype"),
        "Use --precision=mixed_bfloat16 or mixed_float16.",
    ),
    **dict.fromkeys(("drop_path", "drop_path_rate"), "Use --stochastic_depth."),
    **dict.fromkeys(
        ("num_classes", "nc", "classes"),
        "Remove it: the data set defines the number of classes.",
    ),
    **dict.fromkeys(
        ("device", "devices", "gpu", "gpus"),
        "Use --strategy; CUDA_VISIBLE_DEVICES selects GPUs.",
    ),
    **dict.fromkeys(("arch", "model_name", "backbone"), "Use --model."),
    **dict.fromkeys(("data", "data_path", "train_dir"), "Use --dataset."),
    **dict.fromkeys(
        ("imgsz", "img_size", "input_size", "crop_size"), "Use --image_size."
    ),
    **dict.fromkeys(("opt", "optim"), "Use --optimizer."),
    **dict.fromkeys(("sched", "lr_schedule"), "Use --schedule."),
    **dict.fromkeys(("warmup", "warmup_steps"), "Use --warmup_epochs."),
    **dict.fromkeys(("smoothing", "ls"), "Use --label_smoothing."),
    **dict.fromkeys(
        ("clip_grad", "grad_clip", "max_grad_norm"), "Use --clip_norm."
    ),
    **dict.fromkeys(
        ("grad_accum_steps", "accum_steps", "grad_accumulation"),
        "Use --gradient_accumulation_steps.",
    ),
    **dict.fromkeys(
        ("mixup", "cutmix", "aa", "auto_augment", "reprob", "hflip"),
        "Use --augment=NAME,NAME; --help=augment lists the names.",
    ),
    **dict.fromkeys(("model_ema", "ema"), "Use --weight_average=ema."),
    **dict.fromkeys(("patience",), "Use --early_stopping."),
    **dict.fromkeys(
        ("workers", "num_workers"),
        "Remove it: the input pipeline uses all CPU cores.",
    ),
    **dict.fromkeys(("evaluate", "eval", "test"), "Use --mode=evaluate."),
    **dict.fromkeys(
        ("val_split", "val_fraction"), "Use --validation_fraction."
    ),
}


def _define_flags():
    """Defines a flag for every setting, and one for the mode."""
    flags.DEFINE_string("mode", "train", "Mode.")
    for field in FIELDS:
        is_bool = field.type is bool
        define = flags.DEFINE_bool if is_bool else flags.DEFINE_string
        define(flag_name(field.name), None, "See --help.")


def _help_topic(arguments):
    """Returns the topic of a help flag; None without one."""
    for argument in arguments:
        name, _, topic = argument.partition("=")
        if name in HELP:
            return topic or HELP[name]
    return None


def parse(argv):
    """Parses the command line.

    Raises:
      UserError: it has an unknown flag, or an argument that is not a flag.
    """
    try:
        rest = FLAGS(_current_arguments(argv))[1:]
    except flags.UnrecognizedFlagError as error:
        name = error.flagname
        name = name if name in REMOVED else name.removeprefix("no")
        if name in REMOVED:
            _, advice = REMOVED[name]
            raise UserError(f"--{name}: removed. {advice}") from error
        raise UserError(
            f"--{error.flagname}: unknown flag.{_flag_hint(error.flagname)}"
        ) from error
    except flags.Error as error:
        reason = " ".join(str(error).removeprefix("ERROR:: ").split())
        raise UserError(
            f"{reason.rstrip('.')}. Run --help for all flags."
        ) from error
    if rest:
        raise UserError(
            f"{rest[0]!r}: not a flag. Write flags as in --dataset=digits."
        )


def _flag_hint(name):
    """Returns what to use instead of an unknown flag."""
    name = name.replace("-", "_")
    if name in HABITS:
        return f" {HABITS[name]}"
    flags_near = nearest(name, [name] if name in FLAGS else FLAGS)
    return re.sub("( mean | or )", r"\1--", flags_near) or FALLBACK_HINT


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
    """Returns the `Settings` of the explicit flags."""
    given = {
        field.name: FLAGS[flag_name(field.name)].value
        for field in FIELDS
        if FLAGS[flag_name(field.name)].present
    }
    for field in FIELDS:
        modes = field.metadata["modes"]
        if field.name in given and modes and FLAGS.mode not in modes:
            raise UserError(
                f"--{flag_name(field.name)}: requires --mode="
                f"{' or '.join(modes)}. Remove it from --mode={FLAGS.mode}."
            )
    return Settings(**given)


def _import_mode(name):
    """Returns the function of a mode, with TensorFlow set up for it."""
    if not MODES[name].requires_tensorflow:
        return MODES[name].function
    process.import_tensorflow()
    import tensorflow as tf

    # TFDS and TensorFlow log much that does not concern the user.
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)
        tf.get_logger().setLevel("ERROR")
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        # Keras's progress bars of downloads do not belong into files.
        tf.keras.utils.disable_interactive_logging()
    return MODES[name].function


def main(argv):
    """Runs the mode of the command line; returns the exit status."""
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
        # Names of files and classes may contain control characters.
        print(console.printable(f"error: {error}"), file=sys.stderr)
        return 1
    except StoppedError as error:
        # The terminal that would show it may have closed.
        with contextlib.suppress(OSError):
            print(f"error: {error}", file=sys.stderr, flush=True)
        return error.status
    except KeyboardInterrupt:
        print("error: interrupted by Ctrl-C", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of the output has closed it, such as `| head`.
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
    # Charts are drawn into files only. With a backend that is not installed,
    # such as a notebook's, matplotlib cannot be imported.
    os.environ["MPLBACKEND"] = "agg"
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    run_program()
