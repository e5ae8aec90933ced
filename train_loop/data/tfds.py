"""Data sets of TFDS: prepared where necessary, read from TFRecord files."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import glob
import os
import pathlib
import shutil
import urllib.request
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.download_manager import (
    NonMatchingChecksumError,
)
from tensorflow_datasets.core.download.resource import get_dl_fname

from train_loop.data.split import Dataset, Split, content_hash
from train_loop.errors import UserError, check_choice

# Three windows are in memory at a time: the one in use, the next one, and the
# one being read.
WINDOW_BYTES = 2**29
READ_BUFFER_BYTES = 2**23


@dataclasses.dataclass(frozen=True, eq=False)
class RecordStore:
    """Examples that stand in TFRecord files, read one after another.

    Args:
      files: paths.
      counts: how many records are in each.
      parse: maps a record, a scalar string, to {"image": the bytes of a file,
        "label": int64}.
      sizes: bytes of an example, on the average.
      ends: int64 array [num_examples], the byte of its file at which each
        record ends; None where a file is read from its beginning and other
        records are dropped.
    """

    files: Sequence
    counts: Sequence
    parse: Callable
    sizes: float
    ends: np.ndarray | None = None

    labels = links = None
    # Published results are of what TFDS decodes.
    as_stored = True

    @property
    def num_examples(self):
        return sum(self.counts)

    def needs_pillow(self):
        # To find out would be to read everything.
        return True

    @property
    def window(self):
        return max(round(WINDOW_BYTES / max(self.sizes, 1)), 1)

    @functools.cached_property
    def groups(self):
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @property
    def identity(self):
        # Without folders: the same files may lie somewhere else.
        names = [os.path.basename(path) for path in self.files]
        return content_hash(names, [*self.counts])

    @functools.cached_property
    def seekable(self):
        """The same examples with an index of their records.

        To make it takes a read of 8 bytes for each record of all files. There
        is none of files elsewhere (`gs://`), where each would be a request,
        nor of damaged ones, which reading reports.
        """
        has_index = self.ends is not None
        if has_index or any("://" in path for path in self.files):
            return self
        with (
            concurrent.futures.ThreadPoolExecutor(16) as executor,
            contextlib.suppress(OSError),
        ):
            ends = [*executor.map(_record_ends, self.files, self.counts)]
            return dataclasses.replace(self, ends=np.concatenate(ends))
        return self

    @tf.autograph.experimental.do_not_convert
    def read(self, numbers):
        # Each file is read forwards, whatever order is asked for.
        order = tf.argsort(numbers)
        ascending = tf.gather(numbers, order)
        records = self._scan if self.ends is None else self._seek
        examples = (
            records(ascending)
            .map(self.parse, num_parallel_calls=tf.data.AUTOTUNE)
            .batch(tf.size(numbers, tf.int64))
            .get_single_element()
        )
        places = tf.math.invert_permutation(order)
        return {
            name: tf.gather(examples[name], places)
            for name in ("image", "label")
        }

    def _scan(self, numbers):
        """Returns a dataset of ascending records, each file read once."""
        ends = tf.cumsum(tf.constant(self.counts, tf.int64))
        begins = ends - tf.constant(self.counts, tf.int64)
        paths = tf.constant(self.files)
        file_of = tf.searchsorted(ends, numbers, side="right")
        files, _, runs = tf.unique_with_counts(file_of)
        stops = tf.cumsum(runs)

        def read_file(file, start, stop):
            records = numbers[start:stop] - begins[file]
            first, length = records[0], records[-1] + 1 - records[0]
            is_asked_for = tf.scatter_nd(
                records[:, tf.newaxis] - first, tf.ones_like(records), [length]
            )
            span = tf.data.TFRecordDataset(
                paths[file], buffer_size=READ_BUFFER_BYTES
            )
            span = span.skip(first).take(length)
            return (
                tf.data.Dataset.zip(
                    span, tf.data.Dataset.from_tensor_slices(is_asked_for)
                )
                .filter(lambda _, asked: asked > 0)
                .map(lambda record, _: record)
            )

        return tf.data.Dataset.from_tensor_slices(
            (files, stops - runs, stops)
        ).flat_map(read_file)

    def _seek(self, numbers):
        """Returns a dataset of ascending records, and reads nothing else."""
        begins, ends, groups, paths = self._index
        files = tf.gather(groups, numbers)
        # Records of a file one behind the other are read at once.
        is_next = (numbers[1:] == numbers[:-1] + 1) & (files[1:] == files[:-1])
        firsts = tf.concat([[0], tf.where(~is_next)[:, 0] + 1], 0)
        lasts = tf.concat([firsts[1:], [tf.size(numbers, tf.int64)]], 0) - 1
        paths = tf.gather(paths, tf.gather(files, firsts))
        begins = tf.gather(begins, tf.gather(numbers, firsts))
        sizes = tf.gather(ends, tf.gather(numbers, lasts)) - begins
        # As many equal buffers as it takes: none reads beyond the last record.
        buffers = -(-sizes // -(-sizes // READ_BUFFER_BYTES))

        def read_run(path, begin, buffer, count):
            # Not `tf.data.TFRecordDataset`, which always starts at byte 0.
            records = tf.raw_ops.TFRecordDatasetV2(
                filenames=[path],
                compression_type="",
                buffer_size=buffer,
                byte_offsets=[begin],
            )
            return tf.data.experimental.from_variant(
                records, tf.TensorSpec([], tf.string)
            ).take(count)

        return tf.data.Dataset.from_tensor_slices(
            (paths, begins, buffers, lasts - firsts + 1)
        ).flat_map(read_run)

    @functools.cached_property
    def _index(self):
        """Tensors: where each record begins, ends, in which file; paths."""
        is_first = np.diff(self.groups, prepend=-1) > 0
        begins = np.where(is_first, 0, np.roll(self.ends, 1))
        parts = (begins, self.ends, self.groups)
        with tf.init_scope():
            parts = [tf.constant(part, tf.int64) for part in parts]
            return *parts, tf.constant(self.files)

    def load(self, image):
        return image

    def name(self, number):
        """Returns an id as TFDS has them: FILE__RECORD."""
        file = self.groups[number]
        record = number - sum(self.counts[:file])
        return f"{os.path.basename(self.files[file])}__{record}"


def _record_ends(path, count):
    """Returns the bytes at which the records of a TFRecord file end.

    Args:
      path: of the file.
      count: how many records it has.

    Returns:
      int64 array [count].

    Raises:
      OSError: it cannot be read, or has fewer records.
    """
    ends, end = np.empty(count, np.int64), 0
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if hasattr(os, "posix_fadvise"):
            # What is between the headers would be read along.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for number in range(count):
            # Length, its checksum, the record, and that of the record.
            header = os.pread(file.fileno(), 8, end)
            end += 8 + 4 + int.from_bytes(header, "little") + 4
            if len(header) < 8 or end > size:
                raise OSError(f"{path} ends in record {number}")
            ends[number] = end
    return ends


SECONDS_TO_ANSWER = 20
NEEDS_NOTHING = "--dataset=digits needs neither files nor network"


def open_tfds(name, manual_files=(), data_dir=None, manual_dir=None):
    """Returns a data set of TFDS, downloaded and prepared where necessary.

    Args:
      name: of the TFDS builder, such as "cifar10" or "eurosat/rgb:2.0.0".
      manual_files: files that TFDS cannot download and expects to find.
      data_dir: where TFDS keeps prepared data; None for TFDS's own default.
      manual_dir: where the manual files are; None for TFDS's own default,
        `downloads/manual` below `data_dir`.

    Raises:
      tfds.core.DatasetNotFoundError: TFDS does not know the name.
      UserError: it has no images with labels, or is not there and cannot be
        had, or TFDS takes the name of the folder for a pattern.
    """
    if data_dir is not None and glob.has_magic(str(data_dir)):
        raise UserError(
            f"--data_dir={data_dir}: must not contain *, ? or [, which TFDS "
            "takes for a pattern. Rename the folder, or link to it."
        )
    _check_hub(name)
    try:
        _check_config(name)
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, UserError):
        raise
    # Builders raise whatever they trip over.
    except Exception as error:
        # Behind the arguments of the constructor.
        reason = " ".join(str(error).split()).rpartition('}": ')[2]
        raise UserError(f"--dataset={name}: {reason[:300]}") from error
    image_key, label_key = _keys(name, builder)
    if not builder.is_prepared():
        _prepare(builder, manual_files, manual_dir)
    if builder.info.file_format is not tfds.core.FileFormat.TFRECORD:
        raise UserError(
            f"{name} in {builder.data_dir} is prepared as "
            f"{builder.info.file_format.value}; only tfrecord can be read, so "
            "have it prepared again into another --data_dir"
        )
    infos = {
        split: info
        for split, info in builder.info.splits.items()
        if info.num_examples
    }
    files, counts, splits = [], [], {}
    for split, info in infos.items():
        begin = sum(counts)
        files += [str(path) for path in info.filepaths]
        counts += info.shard_lengths
        splits[split] = np.arange(begin, sum(counts))
    num_bytes = sum(info.num_bytes for info in infos.values())
    store = RecordStore(
        files,
        counts,
        _parser(builder, image_key, label_key),
        sizes=num_bytes / max(sum(counts), 1),
    )
    return Dataset(
        tuple(builder.info.features[label_key].names),
        {name: Split(store, indices) for name, indices in splits.items()},
    )


def _check_hub(name):
    """Finds out at once what TFDS finds out after half a minute of retries."""
    if not name.startswith("huggingface:"):
        return
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        _ask(endpoint)
    except OSError as error:
        raise UserError(
            f"--dataset={name} is on {endpoint}, which could not be reached "
            f"({error}); {NEEDS_NOTHING}"
        ) from error


def _ask(url):
    """Raises OSError where no server answers at a URL."""
    request = urllib.request.Request(url, method="HEAD")
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(request, timeout=SECONDS_TO_ANSWER).close()


def _check_config(name):
    """Raises UserError where a data set has no config of the name behind /.

    TFDS says so as well, and not which ones there are.
    """
    try:
        dataset, options = tfds.core.naming.parse_builder_name_kwargs(name)
    except ValueError as error:
        raise tfds.core.DatasetNotFoundError(name) from error
    if options.get("config") is not None:
        configs = tfds.builder_cls(str(dataset)).builder_configs
        names = [f"{dataset}/{config}" for config in configs] or [f"{dataset}"]
        check_choice("--dataset", f"{dataset}/{options['config']}", names)


def _parser(builder, image_key, label_key):
    """Returns a function from a record to its encoded image and its label."""
    decoders = tfds.decode.PartialDecoding(
        {image_key: True, label_key: True},
        decoders={image_key: tfds.decode.SkipDecoding()},
    )
    features = decoders.extract_features(builder.info.features)

    def parse(record):
        example = features.deserialize_example(
            record, decoders=decoders.decoders
        )
        return {"image": example[image_key], "label": example[label_key]}

    return parse


def _keys(name, builder):
    """Returns the names of the image and of its label."""
    features = builder.info.features
    images, labels = (
        [key for key, feature in features.items() if isinstance(feature, kind)]
        for kind in (tfds.features.Image, tfds.features.ClassLabel)
    )
    supervised = builder.info.supervised_keys or ()
    if len(supervised) == 2 and {*supervised} <= {*images, *labels}:
        return supervised
    if len(images) == len(labels) == 1:
        return images[0], labels[0]
    raise UserError(
        f"--dataset={name} is not for image classification: it needs one "
        f"image and one class label, and has {', '.join(features)}"
    )


def _data_dir(builder):
    return pathlib.Path(builder.data_dir).parents[1]


def _prepare(builder, manual_files, manual_dir):
    downloads = _data_dir(builder) / "downloads"
    manual_dir = pathlib.Path(manual_dir or downloads / "manual")
    missing = [
        str(manual_dir / file)
        for file in manual_files
        if not (manual_dir / file).is_file()
    ]
    if missing:
        raise UserError(
            f"{builder.name} must be downloaded by hand, and these files are "
            f"missing: {', '.join(missing)}. Put them there (see "
            f"{builder.info.homepage}) or name their folder with --manual_dir; "
            f"{NEEDS_NOTHING}"
        )
    if not manual_files:
        _check_reachable(builder, downloads, manual_dir)
    _check_disk_space(builder, [manual_dir / file for file in manual_files])
    print(f"Preparing {builder.name} in {builder.data_dir}, once.")
    try:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(
                manual_dir=str(manual_dir)
            )
        )
    except (
        OSError,
        AssertionError,
        tfds.download.DownloadError,
        NonMatchingChecksumError,
    ) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{builder.name} could not be prepared in {builder.data_dir}: "
            f"{reason[:300]}"
        ) from error


def _check_disk_space(builder, archives):
    """Raises UserError where preparing would fill the disk."""
    needed = builder.info.dataset_size
    if archives:
        needed += sum(path.stat().st_size for path in archives)
    else:
        # What is downloaded, and about as much again prepared from it.
        sizes = sum(info.size for info in builder.url_infos.values())
        needed += sizes if needed else 2 * sizes
    folder = next(
        p for p in _data_dir(builder).absolute().parents if p.exists()
    )
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"preparing {builder.name} takes {needed / 1e9:.1f} GB in "
            f"{_data_dir(builder)}, and {free / 1e9:.1f} GB are free; make "
            "room, or name another --data_dir"
        )


def _check_reachable(builder, downloads, manual_dir):
    """Finds out in seconds what TFDS finds out after minutes of retries."""
    for url, info in builder.url_infos.items():
        cached_name = get_dl_fname(url, info.checksum)
        if (manual_dir / info.filename).is_file() or any(
            downloads.rglob(cached_name)
        ):
            continue
        try:
            _ask(url)
        except OSError as error:
            host = urllib.parse.urlsplit(url).netloc
            files = ", ".join(
                f"{url} as {manual_dir / info.filename}"
                for url, info in builder.url_infos.items()
            )
            raise UserError(
                f"{builder.name} is not in {_data_dir(builder)} yet and "
                f"{host} could not be reached ({error}). On a machine that "
                f"reaches it download {files}, and start again; "
                f"{NEEDS_NOTHING}"
            ) from error


def imagenet_class_names():
    """Returns the names of all classes, in their order: goldfish (n01443537).

    The id stays with the word: there are two cranes, and two maillots.
    """
    return [f"{word} ({synset})" for synset, word in _imagenet_words().items()]


def with_imagenet_words(names):
    """Returns names of classes, and of those that are WordNet ids the words."""
    words = dict(zip(_imagenet_words(), imagenet_class_names(), strict=True))
    return [words.get(name, name) for name in names]


@functools.cache
def _imagenet_words():
    """Returns {WordNet id: first of its words}."""
    # Of a data set of TFDS that takes its classes from ImageNet.
    from tensorflow_datasets.datasets.siscore import labels

    path = tfds.core.tfds_path("datasets/imagenet2012/labels.txt")
    synsets = path.read_text().split()
    words = [words.split(",")[0] for words in labels.IMAGENET_LABELS_LIST]
    return dict(zip(synsets, words, strict=True))
