"""TFDS data sets: download, preparation and random access to TFRecord files."""

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

# Three windows are in memory: the current one, the next one, and the one that
# is being read.
WINDOW_BYTES = 2**29
READ_BUFFER_BYTES = 2**23
TIMEOUT_SECONDS = 20
OFFLINE_ADVICE = "Or use --dataset=digits, which needs no download."


@dataclasses.dataclass(frozen=True, eq=False)
class RecordStore:
    """Examples in TFRecord files.

    Args:
      files: paths.
      counts: number of records in each file.
      parse: maps a record, a scalar string, to {"image": the bytes of a file,
        "label": int64}.
      sizes: mean size of an example in bytes.
      ends: int64 array [num_examples], the position in its file at which each
        record ends. None reads a file from its beginning and drops the other
        records.
    """

    files: Sequence
    counts: Sequence
    parse: Callable
    sizes: float
    ends: np.ndarray | None = None

    labels = links = None
    # As TFDS decodes, to be comparable with published results.
    as_stored = True

    @property
    def num_examples(self):
        return sum(self.counts)

    def needs_pillow(self):
        # The exact result would require reading all records.
        return True

    @property
    def window(self):
        return max(round(WINDOW_BYTES / max(self.sizes, 1)), 1)

    @functools.cached_property
    def groups(self):
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @property
    def identity(self):
        # Without folders, because the files can be moved.
        names = [os.path.basename(path) for path in self.files]
        return content_hash(names, [*self.counts])

    @functools.cached_property
    def seekable(self):
        """The same examples with an index of the records.

        Building the index reads 8 bytes per record. Remote files (`gs://`) have
        no index, because each read would be a request. Damaged files have none
        either; reading them reports the error.
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
        # Each file is read in its own order.
        order = tf.argsort(numbers)
        ascending = tf.gather(numbers, order)
        records = self._scan if self.ends is None else self._seek
        examples = (
            records(ascending)
            .map(self.parse, num_parallel_calls=tf.data.AUTOTUNE)
            .batch(tf.size(numbers, tf.int64))
            .get_single_element()
        )
        inverse = tf.math.invert_permutation(order)
        return {
            name: tf.gather(examples[name], inverse)
            for name in ("image", "label")
        }

    def _scan(self, numbers):
        """Returns a dataset of ascending records; reads each file once."""
        ends = tf.cumsum(tf.constant(self.counts, tf.int64))
        begins = ends - tf.constant(self.counts, tf.int64)
        paths = tf.constant(self.files)
        file_of = tf.searchsorted(ends, numbers, side="right")
        files, _, runs = tf.unique_with_counts(file_of)
        stops = tf.cumsum(runs)

        def read_file(file, start, stop):
            records = numbers[start:stop] - begins[file]
            first, length = records[0], records[-1] + 1 - records[0]
            is_requested = tf.scatter_nd(
                records[:, tf.newaxis] - first, tf.ones_like(records), [length]
            )
            span = tf.data.TFRecordDataset(
                paths[file], buffer_size=READ_BUFFER_BYTES
            )
            span = span.skip(first).take(length)
            return (
                tf.data.Dataset.zip(
                    span, tf.data.Dataset.from_tensor_slices(is_requested)
                )
                .filter(lambda _, requested: requested > 0)
                .map(lambda record, _: record)
            )

        return tf.data.Dataset.from_tensor_slices(
            (files, stops - runs, stops)
        ).flat_map(read_file)

    def _seek(self, numbers):
        """Returns a dataset of ascending records; reads only these."""
        begins, ends, groups, paths = self._index
        files = tf.gather(groups, numbers)
        # Consecutive records of a file are read at once.
        is_next = (numbers[1:] == numbers[:-1] + 1) & (files[1:] == files[:-1])
        firsts = tf.concat([[0], tf.where(~is_next)[:, 0] + 1], 0)
        lasts = tf.concat([firsts[1:], [tf.size(numbers, tf.int64)]], 0) - 1
        paths = tf.gather(paths, tf.gather(files, firsts))
        begins = tf.gather(begins, tf.gather(numbers, firsts))
        sizes = tf.gather(ends, tf.gather(numbers, lasts)) - begins
        # Equal buffers, so that none reads past the last record.
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
        """Tensors: start, end and file of each record, and the paths."""
        is_first = np.diff(self.groups, prepend=-1) > 0
        begins = np.where(is_first, 0, np.roll(self.ends, 1))
        parts = (begins, self.ends, self.groups)
        with tf.init_scope():
            parts = [tf.constant(part, tf.int64) for part in parts]
            return *parts, tf.constant(self.files)

    def load(self, image):
        return image

    def name(self, number):
        """Returns the id of TFDS, FILE__RECORD."""
        file = self.groups[number]
        record = number - sum(self.counts[:file])
        return f"{os.path.basename(self.files[file])}__{record}"


def open_tfds(name, manual_files=(), data_dir=None, manual_dir=None):
    """Opens a TFDS data set; downloads and prepares it if necessary.

    Args:
      name: name of the TFDS builder, such as "cifar10" or "eurosat/rgb:2.0.0".
      manual_files: files that the user must download.
      data_dir: folder of prepared data; None for the default of TFDS.
      manual_dir: folder of the manual files; None for the default of TFDS,
        `downloads/manual` in `data_dir`.

    Returns:
      A `Dataset`.

    Raises:
      tfds.core.DatasetNotFoundError: the name is unknown to TFDS.
      UserError: the data set has no images with labels or cannot be prepared,
        or TFDS would read `data_dir` as a pattern.
    """
    if data_dir is not None and glob.has_magic(str(data_dir)):
        raise UserError(
            f"--data_dir={data_dir}: must not contain *, ? or [, which TFDS "
            "reads as a pattern. Rename the folder, or link to it."
        )
    _check_hub(name)
    try:
        _check_config(name)
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, UserError):
        raise
    # Builders raise exceptions of any type.
    except Exception as error:
        # The reason follows the arguments of the constructor.
        reason = " ".join(str(error).split()).rpartition('}": ')[2]
        raise UserError(
            f"--dataset={name}: TFDS cannot open it "
            f"({reason[:300].rstrip('.')}). Pass another name, version or "
            "--data_dir."
        ) from error
    image_key, label_key = _keys(name, builder)
    if not builder.is_prepared():
        _prepare(builder, manual_files, manual_dir)
    if builder.info.file_format is not tfds.core.FileFormat.TFRECORD:
        raise UserError(
            f"--dataset={name}: unsupported file format "
            f"{builder.info.file_format.value} in {builder.data_dir}; must be "
            "tfrecord. Prepare it again in another --data_dir."
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


def imagenet_class_names():
    """Returns the names of the 1,000 classes, such as goldfish (n01443537).

    The WordNet ids make them unique: crane and maillot occur twice.
    """
    return [f"{word} ({synset})" for synset, word in _imagenet_words().items()]


def with_imagenet_words(names):
    """Replaces WordNet ids among class names by words with ids."""
    words = dict(zip(_imagenet_words(), imagenet_class_names(), strict=True))
    return [words.get(name, name) for name in names]


def _record_ends(path, count):
    """Returns the end position of each record of a TFRecord file.

    Args:
      path: path of the file.
      count: number of its records.

    Returns:
      int64 array [count].

    Raises:
      OSError: the file cannot be read or has fewer records.
    """
    ends, end = np.empty(count, np.int64), 0
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if hasattr(os, "posix_fadvise"):
            # Without read-ahead of the content between the headers.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for number in range(count):
            # Length, its checksum, the record, the record's checksum.
            header = os.pread(file.fileno(), 8, end)
            end += 8 + 4 + int.from_bytes(header, "little") + 4
            if len(header) < 8 or end > size:
                raise OSError(f"{path} ends in record {number}")
            ends[number] = end
    return ends


def _check_hub(name):
    """Raises UserError if the hub of Hugging Face cannot be reached.

    TFDS itself would retry for half a minute.
    """
    if not name.startswith("huggingface:"):
        return
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        _request(endpoint)
    except OSError as error:
        raise UserError(
            f"--dataset={name}: {endpoint} cannot be reached ({error}). Check "
            f"the network. {OFFLINE_ADVICE}"
        ) from error


def _request(url):
    """Raises OSError if no server responds at a URL."""
    request = urllib.request.Request(url, method="HEAD")
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS).close()


def _check_config(name):
    """Raises UserError if the config after the slash of a name is unknown.

    The error of TFDS does not list the known configs.
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
    """Returns a function that maps a record to its image file and label."""
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
    """Returns the names of the image and label features."""
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
        f"--dataset={name}: must have one image and one class label, not "
        f"{', '.join(features)}. Pass an image-classification data set."
    )


def _data_dir(builder):
    return pathlib.Path(builder.data_dir).parents[1]


def _prepare(builder, manual_files, manual_dir):
    """Downloads and prepares a data set, or raises UserError."""
    downloads = _data_dir(builder) / "downloads"
    manual_dir = pathlib.Path(manual_dir or downloads / "manual")
    missing = [
        str(manual_dir / file)
        for file in manual_files
        if not (manual_dir / file).is_file()
    ]
    if missing:
        raise UserError(
            f"--dataset={builder.name}: requires manual downloads; not found: "
            f"{', '.join(missing)}. Download them from "
            f"{builder.info.homepage}, or pass their folder as --manual_dir. "
            f"{OFFLINE_ADVICE}"
        )
    if not manual_files:
        _check_reachable(builder, downloads, manual_dir)
    _check_disk_space(builder, [manual_dir / file for file in manual_files])
    print(f"Preparing {builder.name} in {builder.data_dir} (only once).")
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
            f"--dataset={builder.name}: cannot be prepared in "
            f"{builder.data_dir} ({reason[:300].rstrip('.')}). Check the "
            f"downloaded files in {downloads}, and start again."
        ) from error


def _check_disk_space(builder, archives):
    """Raises UserError if the disk is too small for a data set."""
    needed = builder.info.dataset_size
    if archives:
        needed += sum(path.stat().st_size for path in archives)
    else:
        # The downloads, and the prepared data of about the same size.
        sizes = sum(info.size for info in builder.url_infos.values())
        needed += sizes if needed else 2 * sizes
    folder = next(
        p for p in _data_dir(builder).absolute().parents if p.exists()
    )
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"--dataset={builder.name}: requires {needed / 1e9:.1f} GB in "
            f"{_data_dir(builder)}, but {free / 1e9:.1f} GB are free. Free "
            "disk space, or pass another --data_dir."
        )


def _check_reachable(builder, downloads, manual_dir):
    """Raises UserError if the files of a data set cannot be downloaded.

    TFDS itself would retry for minutes.
    """
    for url, info in builder.url_infos.items():
        cached_name = get_dl_fname(url, info.checksum)
        if (manual_dir / info.filename).is_file() or any(
            downloads.rglob(cached_name)
        ):
            continue
        try:
            _request(url)
        except OSError as error:
            host = urllib.parse.urlsplit(url).netloc
            files = ", ".join(
                f"{url} as {manual_dir / info.filename}"
                for url, info in builder.url_infos.items()
            )
            raise UserError(
                f"--dataset={builder.name}: not found in {_data_dir(builder)}, "
                f"and {host} cannot be reached ({error}). On a connected "
                f"machine, download {files}. {OFFLINE_ADVICE}"
            ) from error


@functools.cache
def _imagenet_words():
    """Returns {WordNet id: first of its words}."""
    # From a TFDS data set with the classes of ImageNet.
    from tensorflow_datasets.datasets.siscore import labels

    path = tfds.core.tfds_path("datasets/imagenet2012/labels.txt")
    synsets = path.read_text().split()
    words = [words.split(",")[0] for words in labels.IMAGENET_LABELS_LIST]
    return dict(zip(synsets, words, strict=True))
