"""Errors that the user can fix, each in one line."""

import difflib
import errno
import re

# Longer lists of choices are cut to the first few in messages.
MANY, FEW = 30, 12
# Prefixes of lines that locate an error in TensorFlow's graph.
GRAPH_LINES = ("Graph execution error", "Detected at node", " ", "\t")
FULL_DISK = {errno.ENOSPC, errno.EDQUOT}


class UserError(Exception):
    """A mistake that the user can fix.

    The text is one line: `--FLAG=VALUE: what is accepted. What to do.` The
    command line prints it and exits with status 1.
    """


def check_choice(subject, value, choices):
    """Raises UserError, with the nearest names, unless `value` is a choice.

    Args:
      subject: flag or argument with this value, such as "--model".
      value: to check.
      choices: accepted values; a table's names.
    """
    if value in choices:
        return
    raise UserError(
        f"{subject}={value}: unknown.{nearest(value, choices)} Use one of: "
        f"{listed(choices)}."
    )


def nearest(value, choices):
    """Returns " Did you mean NAME?" with the nearest names; "" without any."""
    names = dict.fromkeys(map(str, choices))
    near = difflib.get_close_matches(str(value), [*names])
    return f" Did you mean {' or '.join(near)}?" if near else ""


def listed(choices):
    """Returns the names of choices in a line; the first few of many."""
    names = list(map(str, choices))
    if len(names) <= MANY:
        return ", ".join(names)
    return f"{', '.join(names[:FEW])} and {len(names) - FEW} others"


def first_few(names, count=5):
    """Returns the first names in a line, and the number of others."""
    names = list(map(str, names))
    line, others = ", ".join(names[:count]), len(names) - count
    return f"{line} and {others:,} others" if others > 0 else line


def reason_of(error):
    """Returns the message of a TensorFlow error in one line."""
    lines = [
        line
        for line in error.message.splitlines()
        if line.strip() and not line.startswith(GRAPH_LINES)
    ]
    line = lines[0] if lines else type(error).__name__
    line = line.rpartition("}} ")[2].partition(" [Op:")[0].strip()
    return line.removeprefix("ValueError: ")


def is_full_disk(error):
    """Tells whether an error means that a disk is full."""
    return getattr(error, "errno", None) in FULL_DISK or "No space left" in str(
        error
    )


def resource_error(error):
    """Returns one line about exhausted memory or disk; None for other errors.

    Args:
      error: an exception of Python or of TensorFlow, which uses one class for
        memory and for disks.
    """
    # Without the names of graph nodes.
    text = re.sub(r"\{\{.*?\}\}", "", str(error))
    line = " ".join(text.split())[:300]
    kind = type(error).__name__
    if is_full_disk(error):
        return (
            f"disk full ({line}). Free some space and start again, or use "
            "another --workdir: a run resumes from its last checkpoint."
        )
    if kind in ("MemoryError", "ResourceExhaustedError"):
        return (
            f"out of memory ({line or kind}). Use a smaller --batch_size, "
            "--image_size or --model, or split batches into micro-batches: "
            "--gradient_accumulation_steps."
        )
    return None
