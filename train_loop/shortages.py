"""Memory and disks that ran out, in a line."""

import errno
import re

FULL = {errno.ENOSPC, errno.EDQUOT}


def is_full_disk(error):
    """Tells whether an error says that there is no room on a disk."""
    return getattr(error, "errno", None) in FULL or "No space left" in str(
        error
    )


def shortage(error):
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
            "--accumulate_steps"
        )
    return None
