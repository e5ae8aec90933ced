"""A run's folder: file names, and how files are written."""

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

# Format of a run's folder -> what training computes differently since then.
FORMATS = {
    1: "",
    2: (
        "the order of images, random crops, resizing, MixUp and CutMix with "
        "--augment_repeats, and the targets of --loss=sigmoid"
    ),
}
# Prefix of folders that hold files until they are complete.
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
        """Returns the folder at a path; `~` is the home directory."""
        return cls(pathlib.Path(os.path.expanduser(path)))

    def __str__(self):
        return str(self.path)

    @property
    def flags(self):
        """All settings, as a `--flagfile` that repeats the run."""
        return self.path / "flags.txt"

    @property
    def data(self):
        """Names of the classes, and the examples that the run began with."""
        return self.path / "data.json"

    def read_data(self):
        """Returns the content of `data`, see `train_loop.data.split.Data`.

        Raises:
          UserError: the file is missing or damaged.
        """
        try:
            return read_json(self.data, "class_names", "splits")
        except UserError as error:
            raise UserError(
                f"{error} Or start a new run from the weights of this one: "
                f"--weights={self}."
            ) from error

    @property
    def config(self):
        """Architecture, classes, preprocessing, format: a JSON object."""
        return self.path / "config.json"

    def write_config(self, config):
        """Writes the result of `resnet_layers.make_config`, and the format."""
        config = {**config, "format_version": max(FORMATS)}
        write_text(self.config, json.dumps(config, indent=2) + "\n")

    @property
    def format_version(self):
        """The format that the run was made with, a key of `FORMATS`."""
        if not self.config.is_file():
            return 1
        return read_json(self.config, "format_version")["format_version"]

    def check_format(self):
        """Raises UserError if the run's format cannot be trained further.

        It would resume with different arithmetic. Its weights stay readable.
        """
        version = self.format_version
        if version == max(FORMATS):
            return
        changes = "; ".join(FORMATS[n] for n in FORMATS if n > version)
        if version not in FORMATS:
            changes = "what only a newer version of this program knows"
        raise UserError(
            f"--workdir={self}: a run of format {version} cannot be trained "
            f"further; format {max(FORMATS)} changes {changes}. Start a new "
            f"run from its weights: --weights={self}."
        )

    @property
    def metrics(self):
        """Reports, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def skipped_batches(self):
        """Batches that training skips, one JSON object per line."""
        return self.path / "left_out.jsonl"

    @property
    def history(self):
        """Changes of settings on resume, one JSON object per line."""
        return self.path / "history.jsonl"

    @property
    def checkpoints(self):
        return self.path / "checkpoints"

    @property
    def report(self):
        return self.path / "report"

    @property
    def bad_images(self):
        """Images that cannot be decoded, one JSON object per line."""
        return self.path / "bad_images.jsonl"

    @property
    def pictures(self):
        return self.path / "pictures.png"

    @property
    def counts(self):
        """Number of images per class, as CSV."""
        return self.path / "class_counts.csv"

    @property
    def duplicates(self):
        """Exact duplicates among the images, as CSV."""
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
        # False also for an invalid path.
        return os.path.isfile(self.flags)

    @property
    def steps(self):
        """Steps of the checkpoints, in order."""
        # TensorFlow takes seconds to import.
        from resnet_layers.weights.files import list_checkpoints

        return sorted(step for step, _ in list_checkpoints(self.checkpoints))

    @property
    def has_checkpoint(self):
        return any(self.checkpoints.glob("*.index"))

    def runs_beside(self):
        """Returns the folders of runs beside this one."""
        flags = self.path.absolute().parent.glob("*/flags.txt")
        return [self.path.with_name(path.parent.name) for path in sorted(flags)]

    def check_writable(self):
        """Raises UserError if no file can be written here."""
        check_writable("--workdir", self.path)

    def check_free(self):
        """Raises UserError if another process is training here."""
        if self.path.is_dir():
            with self.locked():
                pass

    @contextlib.contextmanager
    def locked(self):
        """Prevents a second process from training in the same folder."""
        _make_folder(self.path)
        try:
            with _in_use(self.path):
                yield
        except filelock.Timeout as error:
            raise UserError(
                f"--workdir={self}: another process is training here. Wait "
                "for it, stop it, or use another --workdir."
            ) from error


def check_writable(flag, path):
    """Raises UserError if no file can be written to a folder.

    Leaves no file behind.

    Args:
      flag: flag with the folder's path.
      path: path of the folder, which may not exist yet.
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
            f"{flag}={path}: cannot be written ({error.strerror}: {existing}). "
            "Use another folder."
        ) from error


@contextlib.contextmanager
def temporary_folder(parent):
    """Creates a folder that no other process writes to or removes.

    Folders of killed processes are removed; those of other machines after a
    day, because locks of some shared disks hold for one machine only.

    Args:
      parent: `pathlib.Path` of its parent folder.

    Yields:
      The path of the folder, which is removed at the end.
    """
    _make_folder(parent)
    prefix = f"{UNFINISHED}{platform.node()}-"
    for rest in parent.glob(f"{UNFINISHED}*"):
        # filelock.Timeout is an OSError.
        with contextlib.suppress(OSError):
            age = time.time() - rest.stat().st_mtime
            # Another machine's name may start with this one's.
            is_own = rest.name.rpartition("-")[0] == prefix.removesuffix("-")
            if is_own or age > SECONDS_OF_OTHERS:
                with _in_use(rest):
                    shutil.rmtree(rest, ignore_errors=True)
    # Another process may remove the new folder before it is locked, and some
    # disks have no locks.
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
    """Writes a file or a folder that appears when it is complete.

    Args:
      path: its final path.

    Yields:
      The path to write to. The previous file or folder stays if writing fails,
      however the process ends, a power cut included; a folder is missing for
      the moment between two renames.
    """
    path = pathlib.Path(path)
    with temporary_folder(path.parent) as temporary:
        unfinished = temporary / path.name
        yield unfinished
        move_synced(unfinished, path)


def move_synced(unfinished, path):
    """Moves a file or a folder once all its data is on the disk.

    Args:
      unfinished: its path in a folder of `temporary_folder`.
      path: its final path; an existing file or folder is replaced.
    """
    sync(unfinished)
    while True:
        if unfinished.is_dir():
            # Moved first: removal may take long, and no half of the folder
            # should be found at its path.
            replaced = tempfile.mkdtemp(dir=unfinished.parent)
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, pathlib.Path(replaced, path.name))
        try:
            os.replace(unfinished, path)
            break
        except OSError as error:
            # Another process has written this folder meanwhile.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    _sync_entries(path.parent)


def sync(path):
    """Flushes a file, or a folder with its content, to the disk."""
    if path.is_dir():
        for each in path.iterdir():
            sync(each)
        _sync_entries(path)
    else:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def write_text(path, text):
    """Writes a text file atomically."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def made_from(folder, origin):
    """Writes a folder that appears when it is complete, with its origin.

    Args:
      folder: its final path.
      origin: what its content derives from; a value for JSON.

    Yields:
      The folder to write to.
    """
    with temporary_folder(folder.parent) as temporary:
        unfinished = temporary / folder.name
        unfinished.mkdir()
        yield unfinished
        record = {"origin": origin, "bytes": _sizes(unfinished)}
        (unfinished / "origin.json").write_text(json.dumps(record))
        # Another process may have been faster, and may read its folder.
        if not is_made_from(folder, origin):
            move_synced(unfinished, folder)


def is_made_from(folder, origin):
    """Tells whether a folder is complete and derives from `origin`."""
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
    """Returns the content of a JSON file.

    Args:
      path: path of the file.
      *keys: keys that it must have.

    Raises:
      UserError: the file is missing or damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        for key in keys:
            if not isinstance(value, dict) or key not in value:
                raise ValueError(f"no key {key}")
        return value
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}). Restore it from a backup."
        ) from error


def read_json_lines(path):
    """Returns the complete records of a file; none without the file."""
    records = []
    with contextlib.suppress(FileNotFoundError):
        for line in read_lines(path):
            with contextlib.suppress(json.JSONDecodeError):
                records.append(json.loads(line))
    return records


def append_json_line(path, record):
    """Appends a record to a file of `read_json_lines`, and flushes it."""
    with path.open("ab+") as file:
        begin = file.tell()
        if begin:
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                # An incomplete line stays a line of its own.
                file.write(b"\n")
        file.write(json.dumps(record).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if not begin:
        _sync_entries(path.parent)


def read_lines(path):
    """Returns the lines of a text file, without line ends.

    Only newlines end a line, unlike in `str.splitlines`. Bytes that are not
    UTF-8 are replaced.
    """
    text = pathlib.Path(path).read_bytes().decode(errors="replace")
    *lines, rest = text.split("\n")
    return [line.removesuffix("\r") for line in [*lines, *[rest] * bool(rest)]]


def _in_use(folder):
    """Returns the lock of a folder, released when the process ends."""
    return filelock.FileLock(folder / "in_use.lock", blocking=False)


def _make_folder(path):
    """Creates a folder and its parents, and flushes their entries."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in missing:
        _sync_entries(each.parent)


def _sync_entries(folder):
    """Flushes the names of the files in a folder to the disk."""
    # Not all systems can open a folder, and not all file systems can sync it.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
