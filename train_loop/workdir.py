"""The folder of a run: the names of its files, and how they are written."""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import platform
import shutil
import tempfile
import time

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
# How the folders begin that files are written in until they are complete.
UNFINISHED = ".unfinished-"
SECONDS_OF_OTHERS = 24 * 60 * 60


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
        """Returns the value in `data`, see `train_loop.data.split.Data`.

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
        """Architecture, classes, preprocessing, format: a JSON object."""
        return self.path / "config.json"

    def write_config(self, config):
        """Writes what `resnet_layers.make_config` returns, and the format."""
        config = {**config, "format_version": max(FORMATS)}
        write_text(self.config, json.dumps(config, indent=2) + "\n")

    @property
    def format_version(self):
        """The format that the run was made with, a key of `FORMATS`."""
        if not self.config.is_file():
            return 1
        return read_json(self.config, "format_version")["format_version"]

    def check_format(self):
        """Raises UserError where the run cannot be trained any further.

        It would resume with other arithmetic than it began with. Its weights
        stay readable.
        """
        version = self.format_version
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
    def skipped_batches(self):
        """The batches that training skips, a JSON object a line."""
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
    def duplicates(self):
        """Which images are exact duplicates of others, as CSV."""
        return self.path / "duplicates.csv"

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
        # TensorFlow takes seconds to import.
        from resnet_layers.weights.files import list_checkpoints

        return sorted(step for step, _ in list_checkpoints(self.checkpoints))

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
        _make_folder(self.path)
        try:
            with _in_use(self.path):
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
def temporary_folder(parent):
    """Makes a folder that no other process writes to or removes.

    Folders of killed processes are removed; those of other machines after a
    day, because some shared disks lock for one machine only.

    Args:
      parent: the `pathlib.Path` of the folder that it is in.

    Yields:
      The path of the folder, which is removed at the end.
    """
    _make_folder(parent)
    prefix = f"{UNFINISHED}{platform.node()}-"
    for rest in parent.glob(f"{UNFINISHED}*"):
        # A timeout is one of these.
        with contextlib.suppress(OSError):
            age = time.time() - rest.stat().st_mtime
            # Another machine may have a longer name that begins like this one.
            is_own = rest.name.rpartition("-")[0] == prefix.removesuffix("-")
            if is_own or age > SECONDS_OF_OTHERS:
                with _in_use(rest):
                    shutil.rmtree(rest, ignore_errors=True)
    # Before it is locked, another process may take the new one for a rest;
    # and some disks know no locks.
    for _ in range(3):
        folder = pathlib.Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        lock = _in_use(folder)
        with contextlib.suppress(OSError):
            lock.acquire()
            break
    try:
        yield folder
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def atomic_write(path):
    """Lets a file or a folder appear under its name when it is complete.

    Args:
      path: its name.

    Yields:
      The path to write to in the meantime. What stood under the name before
      stays there if writing fails, whatever way the process ends, a power cut
      included; a folder is missing for the moment between two renames.
    """
    path = pathlib.Path(path)
    with temporary_folder(path.parent) as temporary:
        unfinished = temporary / path.name
        yield unfinished
        move_synced(unfinished, path)


def move_synced(unfinished, path):
    """Gives a file or a folder its name, once the disk has all of it.

    Args:
      unfinished: what it is called so far, in a folder of `temporary_folder`.
      path: its name; what has it is replaced.
    """
    sync(unfinished)
    while True:
        if unfinished.is_dir():
            # To remove it may take long, and half of it shall not be found
            # under its name.
            replaced = tempfile.mkdtemp(dir=unfinished.parent)
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, pathlib.Path(replaced, path.name))
        try:
            os.replace(unfinished, path)
            break
        except OSError as error:
            # Another process has written a folder of this name meanwhile.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    _sync_entries(path.parent)


def sync(path):
    """Returns when the disk has a file, or a folder with all that is in it."""
    if path.is_dir():
        for each in path.iterdir():
            sync(each)
        _sync_entries(path)
    else:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def write_text(path, text):
    """Writes a text file, whole or not at all."""
    with atomic_write(path) as unfinished:
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
    with temporary_folder(folder.parent) as temporary:
        unfinished = temporary / folder.name
        unfinished.mkdir()
        yield unfinished
        record = {"origin": origin, "bytes": _sizes(unfinished)}
        (unfinished / "origin.json").write_text(json.dumps(record))
        # Another process may have been faster, and may be reading its own.
        if not is_made_from(folder, origin):
            move_synced(unfinished, folder)


def is_made_from(folder, origin):
    """Tells whether a folder is there, complete, and made from `origin`."""
    records = read_json_lines(folder / "origin.json")
    if not records:
        return False
    return records == [{"origin": origin, "bytes": _sizes(folder)}]


def _sizes(folder):
    """Returns {name: bytes} of the files in a folder of `made_from`."""
    return {
        path.name: path.stat().st_size
        for path in folder.iterdir()
        if path.name != "origin.json"
    }


def read_json(path, *keys):
    """Returns the value in a file of JSON.

    Args:
      path: of the file.
      *keys: what is in it, if it is whole.

    Raises:
      UserError: there is no such file, or it is damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
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
        for line in read_lines(path):
            with contextlib.suppress(json.JSONDecodeError):
                records.append(json.loads(line))
    return records


def append_json_line(path, record):
    """Appends a record to a file of `read_json_lines`, and to the disk."""
    with path.open("ab+") as file:
        begin = file.tell()
        if begin:
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                # Half of a line stays one line.
                file.write(b"\n")
        file.write(json.dumps(record).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if not begin:
        _sync_entries(path.parent)


def read_lines(path):
    """Returns the lines of a text file, without what ends them.

    That is a newline, and nothing else that `str.splitlines` takes for the end
    of a line. What is no UTF-8 is replaced.
    """
    text = pathlib.Path(path).read_bytes().decode(errors="replace")
    *lines, rest = text.split("\n")
    return [line.removesuffix("\r") for line in [*lines, *[rest] * bool(rest)]]


def _in_use(folder):
    """Returns the lock of a folder, released when the process ends."""
    return filelock.FileLock(folder / "in_use.lock", blocking=False)


def _make_folder(path):
    """Makes a folder and those above it, and syncs their entries."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in missing:
        _sync_entries(each.parent)


def _sync_entries(folder):
    """Returns when the disk has the names of what is in a folder."""
    # Not all systems can open one, and not all file systems can sync it.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
