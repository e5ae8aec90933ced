"""The folder of a run: the names of its files, and how they are written."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import tempfile

import filelock

from train_loop.errors import UserError

# Format of a run's folder -> what training computes differently from there on.
FORMATS = {
    1: "",
    2: (
        "the order of images, random crops, resizing, MixUp and CutMix under "
        "--augment_repeats, and the targets of --loss=sigmoid"
    ),
}


@dataclasses.dataclass(frozen=True)
class Workdir:
    """The folder of a run, which may not exist yet.

    Args:
      path: a `pathlib.Path`.
    """

    path: pathlib.Path

    @classmethod
    def of(cls, path):
        """Returns the folder of this name; `~` is the home directory."""
        return cls(pathlib.Path(os.path.expanduser(path)))

    def __str__(self):
        return str(self.path)

    @property
    def flags(self):
        """All settings, as a `--flagfile` that repeats the run."""
        return self.path / "flags.txt"

    @property
    def data(self):
        """Which examples the run began with, and the names of its classes."""
        return self.path / "data.json"

    def read_data(self):
        """Returns the value in `data`, see `train_loop.data.stored.Data`.

        Raises:
          UserError: there is no such file, or it is damaged.
        """
        try:
            return read_json(self.data, "class_names", "splits")
        except UserError as error:
            raise UserError(
                f"{error}, or start a new run from the weights of this one: "
                f"--weights={self}"
            ) from error

    @property
    def config(self):
        """The format of the folder, a JSON object."""
        return self.path / "config.json"

    def write_config(self):
        """Marks the folder as a run of this version of the program."""
        write_text(self.config, json.dumps({"format_version": max(FORMATS)}))

    def check_format(self):
        """Raises UserError where the run cannot be trained any further.

        It would go on with other arithmetic than it began with. Its weights
        stay readable.
        """
        version = 1
        if self.config.is_file():
            version = read_json(self.config, "format_version")["format_version"]
        if version == max(FORMATS):
            return
        changes = "; ".join(FORMATS[n] for n in FORMATS if n > version)
        if version not in FORMATS:
            changes = "which only a newer version of this program knows"
        raise UserError(
            f"--workdir={self}: a run of format {version} cannot be trained "
            f"further; format {max(FORMATS)} changes {changes}. Start a new "
            f"run from its weights: --weights={self}"
        )

    @property
    def metrics(self):
        """A line of JSON per report."""
        return self.path / "metrics.jsonl"

    @property
    def left_out(self):
        """What was left out of training, a JSON object a line."""
        return self.path / "left_out.jsonl"

    @property
    def history(self):
        """A line of JSON for every change of the settings on the way."""
        return self.path / "history.jsonl"

    @property
    def checkpoints(self):
        return self.path / "checkpoints"

    @property
    def report(self):
        return self.path / "report"

    @property
    def bad_images(self):
        """A line of JSON per image that cannot be decoded."""
        return self.path / "bad_images.jsonl"

    @property
    def pictures(self):
        return self.path / "pictures.png"

    @property
    def counts(self):
        """How many images there are of each class, as CSV."""
        return self.path / "class_counts.csv"

    @property
    def cache(self):
        return self.path / "cache"

    @property
    def embeddings(self):
        return self.path / "embeddings"

    @property
    def explanations(self):
        return self.path / "explanations"

    @property
    def export(self):
        return self.path / "export"

    @property
    def is_run(self):
        # False also for a path that there cannot be.
        return os.path.isfile(self.flags)

    @property
    def steps(self):
        """The steps that there are checkpoints of, in order."""
        names = (path.stem for path in self.checkpoints.glob("ckpt-*.index"))
        return sorted(int(name.removeprefix("ckpt-")) for name in names)

    @property
    def has_checkpoint(self):
        return any(self.checkpoints.glob("*.index"))

    def runs_beside(self):
        """Returns the folders of runs that lie beside this one."""
        flags = self.path.absolute().parent.glob("*/flags.txt")
        return [self.path.with_name(path.parent.name) for path in sorted(flags)]

    def check_writable(self):
        """See the function of this name."""
        check_writable("--workdir", self.path)

    def check_free(self):
        """Raises UserError where another process is training there."""
        if self.path.is_dir():
            with self.locked():
                pass

    @contextlib.contextmanager
    def locked(self):
        """Keeps a second process from training in the same folder."""
        self.path.mkdir(parents=True, exist_ok=True)
        # The system takes it off in whatever way a process ends.
        lock = filelock.FileLock(self.path / "in_use.lock", blocking=False)
        try:
            with lock:
                yield
        except filelock.Timeout as error:
            raise UserError(
                f"another process is training in {self}; wait for it, stop "
                "it, or give this one a --workdir of its own"
            ) from error


def check_writable(flag, path):
    """Finds out before any long work, and without leaving a trace.

    Args:
      flag: that names the folder.
      path: of the folder, which may not exist yet.

    Raises:
      UserError: no file can be written there.
    """
    path = existing = pathlib.Path(path)
    try:
        existing = next(
            parent
            for parent in (path, *path.absolute().parents)
            if parent.exists()
        )
        tempfile.TemporaryDirectory(dir=existing).cleanup()
    except OSError as error:
        raise UserError(
            f"{flag}={path} cannot be written ({error.strerror}: {existing}); "
            "name a folder that can be"
        ) from error


@contextlib.contextmanager
def written_aside(path):
    """Lets a file or a folder appear under its name when it is complete.

    Args:
      path: its name.

    Yields:
      The path to write to in the meantime. What stood under the name before
      stays there if writing fails, whatever way the process ends; a folder is
      missing for the moment between two renames.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.tmp")
    replaced = path.with_name(f"{path.name}.old")
    _remove(unfinished)
    _remove(replaced)
    try:
        yield unfinished
        if unfinished.is_dir() and path.exists():
            # To remove it may take long, and half of it shall not be found
            # under its name.
            os.replace(path, replaced)
        os.replace(unfinished, path)
    finally:
        _remove(unfinished)
        _remove(replaced)


def write_text(path, text):
    """Writes a text file, whole or not at all."""
    with written_aside(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def made_from(folder, origin):
    """Lets a folder appear when it is complete, with its origin in it.

    Args:
      folder: its path.
      origin: what it is made from; a value for JSON.

    Yields:
      The folder to write to in the meantime.
    """
    with written_aside(folder) as unfinished:
        unfinished.mkdir()
        yield unfinished
        write_text(unfinished / "origin.json", json.dumps(origin))


def is_made_from(folder, origin):
    """Tells whether a folder is there, complete, and made from `origin`."""
    return read_json_lines(folder / "origin.json") == [origin]


def read_json(path, *keys):
    """Returns the value in a file of JSON.

    Args:
      path: of the file.
      *keys: what is in it, if it is whole.

    Raises:
      UserError: there is no such file, or it is damaged.
    """
    try:
        value = json.loads(path.read_text())
        for key in keys:
            if not isinstance(value, dict) or key not in value:
                raise ValueError(f"it has no {key}")
        return value
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); put it back from a copy"
        ) from error


def read_json_lines(path):
    """Returns the complete records of a file that may be missing."""
    records = []
    with contextlib.suppress(FileNotFoundError):
        # What is no text is no record.
        text = pathlib.Path(path).read_text(errors="replace")
        for line in text.splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                records.append(json.loads(line))
    return records


def append_json_line(path, record):
    """Appends a record to a file of `read_json_lines`."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def _remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
