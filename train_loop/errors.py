"""Errors that the user can fix, each in one line."""

import difflib
import errno
import re

# Of more choices than that, messages name the first few.
MANY, FEW = 30, 12
# How lines begin that tell where in a graph it went wrong.
PLACES = ("Graph execution error", "Detected at node", " ", "\t")
FULL = {errno.ENOSPC, errno.EDQUOT}


class UserError(Exception):
    """A mistake that the user can fix.

    Its text says in one line what was given, what would have been accepted
    and what to do next. `main` prints it and exits with status 1.
    """


def check_choice(what, given, choices):
    """Raises UserError, with the nearest names, unless `given` is a choice.

    Args:
      what: that has the value, such as "--model".
      given: the value.
      choices: those possible; a table's names.
    """
    if given in choices:
        return
    raise UserError(
        f"{what}={given} is unknown{nearest(given, choices)} It takes: "
        f"{listed(choices)}"
    )


def nearest(given, choices):
    """Returns the end of a sentence: a question, where one is meant maybe."""
    names = dict.fromkeys(map(str, choices))
    near = difflib.get_close_matches(str(given), [*names])
    return f"; did you mean {' or '.join(near)}?" if near else "."


def listed(choices):
    """Returns the names of choices in a line; of many, the first few."""
    names = list(map(str, choices))
    if len(names) <= MANY:
        return ", ".join(names)
    return f"{', '.join(names[:FEW])} and {len(names) - FEW} others"


def first_few(names, count=5):
    """Returns the first names in a line, and how many others there are."""
    names = list(map(str, names))
    line, others = ", ".join(names[:count]), len(names) - count
    return f"{line} and {others:,} others" if others > 0 else line


def reason_of(error):
    """Returns what TensorFlow says in one line, without its own names."""
    lines = [
        line
        for line in error.message.splitlines()
        if line.strip() and not line.startswith(PLACES)
    ]
    line = lines[0] if lines else type(error).__name__
    line = line.rpartition("}} ")[2].partition(" [Op:")[0].strip()
    return line.removeprefix("ValueError: ")


def is_full_disk(error):
    """Tells whether an error says that there is no room on a disk."""
    return getattr(error, "errno", None) in FULL or "No space left" in str(
        error
    )


def resource_error(error):
    """Returns what ran out and what to do; None for errors of another kind.

    Args:
      error: an exception, of Python or of TensorFlow, which has one kind for
        memory and for disks.
    """
    # Without what TensorFlow says of its graphs.
    text = re.sub(r"\{\{.*?\}\}", "", str(error))
    line = " ".join(text.split())[:300]
    kind = type(error).__name__
    if is_full_disk(error):
        return (
            f"the disk is full ({line}); make room and start again, or name "
            "another --workdir: a run goes on from its last checkpoint"
        )
    if kind in ("MemoryError", "ResourceExhaustedError"):
        return (
            f"there is not enough memory ({line or kind}); take a smaller "
            "--batch_size, --image_size or --model, or each batch in pieces: "
            "--gradient_accumulation_steps"
        )
    return None
