"""The checkpoints of a run, and its settings, which stand beside them."""

import contextlib
import pathlib
import tempfile

# The parts of a checkpoint that hold weights, by their path below the model.
MODEL, AVERAGE = "model", "average"
# TensorFlow takes the name of a checkpoint for a pattern. A bracket or a
# backslash in it does not match itself.
PATTERN_LETTERS = frozenset("*?[]\\")


@contextlib.contextmanager
def readable_prefix(prefix):
    """Yields a prefix by which TensorFlow finds a checkpoint.

    Args:
      prefix: of the checkpoint.

    Yields:
      A string; where TensorFlow would take the prefix for a pattern, that of
      links in a temporary folder.
    """
    if PATTERN_LETTERS.isdisjoint(str(prefix)):
        yield str(prefix)
        return
    prefix = pathlib.Path(prefix).absolute()
    with tempfile.TemporaryDirectory() as folder:
        for path in prefix.parent.iterdir():
            if path.name.startswith(f"{prefix.name}."):
                name = path.name.replace(prefix.name, "ckpt", 1)
                pathlib.Path(folder, name).symlink_to(path)
        yield f"{folder}/ckpt"


def settings_beside(path):
    """Returns {name: text} of the run that weights lie in, {} without one.

    Args:
      path: a `pathlib.Path` of the run's folder, of its checkpoints, or of
        one of them.
    """
    for folder in (path, *path.parents[:2]):
        flags = folder / "flags.txt"
        if flags.is_file():
            # Damaged, it tells what it can.
            text = flags.read_bytes().decode(errors="replace")
            # Other ends of lines may be in the names of files.
            lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
            pairs = (line.removeprefix("--").partition("=") for line in lines)
            return {name: text for name, _, text in pairs}
    return {}
