"""The settings of a run, which stand beside its checkpoints."""


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
            text = flags.read_text(encoding="utf-8", errors="replace")
            lines = text.splitlines()
            pairs = (line.removeprefix("--").partition("=") for line in lines)
            return {name: text for name, _, text in pairs}
    return {}
