"""Data sets of TFDS: prepared where necessary, and read as they are."""

import contextlib
import functools
import glob
import os
import pathlib
import shutil
import urllib.request

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.download_manager import (
    NonMatchingChecksumError,
)
from tensorflow_datasets.core.download.resource import get_dl_fname

from train_loop.data.split import Dataset, Split
from train_loop.data.tfrecord import RecordStore
from train_loop.errors import UserError, check_choice

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
    """Raises OSError where nobody answers at a URL, whatever the answer."""
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
