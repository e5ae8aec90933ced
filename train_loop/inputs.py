"""This file answers: how do the flags turn a data set into batches?"""

import collections
import contextlib
import functools
import hashlib
import json
import pathlib
import socket
import urllib.parse

import numpy as np
import tensorflow as tf

from train_loop import (
    UserError,
    augment,
    caching,
    datasets,
    embeddings,
    inspection,
    loop,
    pipeline,
    preprocessing,
    settings,
)
from train_loop.settings import FLAGS

# The flags that decide, beside its weights, what a frozen backbone makes of
# which picture.
OF_EMBEDDINGS = (
    "model",
    "precision",
    "image_size",
    "crop_fraction",
    "interpolation",
    "normalization",
)
# Among how many batches one that could not be prepared is looked for.
BATCHES_AHEAD = 128


def open_source(workdir):
    """Returns the `datasets.Source` that --dataset and its flags ask for.

    Args:
      workdir: folder of the run, for the list of broken pictures and for a
        cache on disk.

    Raises:
      UserError: it is not there, or cannot be used as it is.
    """
    if FLAGS.data_service:
        check_data_service()
    source, refused = open_whole_source()
    check_unchanged(source, workdir)
    if FLAGS.skip_bad_images:
        source = leave_out_broken(source, refused, workdir)
    elif refused:
        others = f" (and {len(refused) - 1} like it)" if refused[1:] else ""
        raise UserError(
            f"{refused[0]['name']} {refused[0]['reason']}{others}; mend it, or "
            "leave such pictures out with --skip_bad_images"
        )
    for name, split in splits_of(source).items():
        labels = getattr(split, "labels", None)
        if labels is not None:
            warn(
                f"{name}: {line}"
                for line in inspection.balance_warnings(
                    collections.Counter(labels.numpy().tolist()),
                    source.class_names,
                )
            )
    return keep_near(source, workdir)


def check_data_service():
    """Raises UserError where nobody answers: TensorFlow would wait for ever."""
    address = urllib.parse.urlsplit(FLAGS.data_service)
    try:
        if address.scheme != "grpc":
            raise ValueError("it must begin with grpc://")
        place = (address.hostname, address.port)
        socket.create_connection(place, timeout=10).close()
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"--data_service={FLAGS.data_service} cannot be reached ({error}); "
            "start its dispatcher, or leave the flag out"
        ) from error


def check_unchanged(source, workdir):
    """Raises UserError where a run finds other pictures than it began with.

    It would evaluate on some that it was trained on.
    """
    path = workdir / "data.json"
    if (
        (workdir / "flags.txt").is_file()
        and path.is_file()
        and json.loads(path.read_text()) != source.seen
    ):
        raise UserError(
            f"the pictures of {FLAGS.dataset} are not those that {workdir} "
            "began with; start a new run, from the weights of this one if you "
            f"like: --weights={workdir}"
        )


def remember(source, workdir):
    """Writes down which pictures a run begins with."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "data.json").write_text(json.dumps(source.seen) + "\n")


def open_whole_source():
    """Returns the data set, and a record of each file that is of no use."""
    stored = datasets.open_stored(
        FLAGS.dataset,
        data_dir=settings.absolute(FLAGS.data_dir),
        manual_dir=settings.absolute(FLAGS.manual_dir),
    )
    warn(stored.warnings)
    source = datasets.choose_splits(
        stored, FLAGS.train_split, FLAGS.eval_split, FLAGS.validation_fraction
    )
    shared = source.train.overlap(source.evaluation)
    if shared:
        warn([f"{shared:,} pictures are in both splits: train and eval"])
    warn(source.warnings)
    seen = {
        name: {"pictures": split.num_examples, "listing": split.listing()}
        for name, split in splits_of(source).items()
    }
    refused = [
        {"split": None, "name": name, "reason": reason}
        for name, reason in stored.refused.items()
    ]
    return source._replace(seen=seen), refused


def warn(lines):
    for line in lines:
        print(f"warning: {line}")


def splits_of(source):
    return {"train": source.train, "eval": source.evaluation}


def with_splits(source, splits):
    """Returns the source with these in place of what `splits_of` returns."""
    return source._replace(train=splits["train"], evaluation=splits["eval"])


def leave_out_broken(source, refused, workdir):
    """Returns the source without the pictures that cannot be decoded.

    They are looked for once in the life of a run, and named in its folder.
    """
    path = workdir / "bad_images.jsonl"
    splits = splits_of(source)
    fingerprints = [split.fingerprint() for split in splits.values()]
    records = read_broken(path, fingerprints)
    if records is None:
        records = find_all_broken(source, refused)
        write_broken(path, fingerprints, records)
    source = without_broken(source, records)
    print(f"{left_out(source, records)}, named in {path}.")
    check_not_empty(source)
    return source


def without_broken(source, records):
    """Returns the source without broken pictures; a split may end up empty."""
    splits = splits_of(source)
    for name, split in splits.items():
        indices = [r["index"] for r in records if r["split"] == name]
        if indices:
            splits[name] = split.without(indices)
    return with_splits(source, splits)


def left_out(source, records):
    """Tells how many pictures a source is without."""
    left = sum(split.num_examples for split in splits_of(source).values())
    total = left + len(records)
    return f"Leaving out {len(records)} broken pictures of {total:,}"


def check_not_empty(source):
    """Raises UserError where nothing but broken pictures was in a split."""
    for name, split in splits_of(source).items():
        if not split.num_examples:
            raise UserError(f"no picture for {name} can be decoded")


def write_broken(path, fingerprints, records):
    """Names broken pictures, after a line on the data that they are of."""
    lines = [{"searched": fingerprints}, *records]
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside and then renamed, so that a kill never leaves half of it.
    unfinished = pathlib.Path(f"{path}.tmp")
    unfinished.write_text("".join(json.dumps(line) + "\n" for line in lines))
    unfinished.rename(path)


def read_broken(path, fingerprints):
    """Returns what was found broken; None where other data was searched."""
    if not path.is_file():
        return None
    try:
        first, *records = map(json.loads, path.read_text().splitlines())
    except ValueError:
        return None
    return records if first == {"searched": fingerprints} else None


def find_all_broken(source, refused):
    """Returns a record for each picture that is of no use."""
    records = [*refused]
    for name, split in splits_of(source).items():
        records += find_broken(split, name)
    return records


def find_broken(split, name):
    """Returns a record for each picture of a split that cannot be decoded."""
    records = []
    bar = loop.progress_bar(
        split.num_examples,
        unit="picture",
        description=f"looking through {name}",
        leave=False,
        delay=2.0,
    )
    with broken_named(split), bar:
        for index, reason in inspection.broken_pictures(
            split.stored(), split.load, preprocessing.check_picture
        ):
            bar.update(1)
            if reason is not None:
                record = {"split": name, "index": index, "reason": reason}
                records.append({**record, "name": split.name(index)})
    return records


def count_labels(split, name):
    """Returns {label: how many} of a split, however long it takes."""
    counts = {}
    bar = loop.progress_bar(
        split.num_examples,
        unit="picture",
        description=f"counting {name}",
        leave=False,
        delay=2.0,
    )
    with broken_named(split), bar:
        for counts in inspection.count_labels(split):
            bar.update(sum(counts.values()) - bar.n)
    return counts


def keep_near(source, workdir):
    """Returns the source with its files where --cache wants them."""
    splits = splits_of(source)
    choice = FLAGS.cache
    if choice == "auto":
        choice = caching.choose(splits.values())
        if FLAGS.data_service:
            # Its workers read files, but not through functions of Python.
            is_hdf5 = FLAGS.dataset.endswith(datasets.HDF5_SUFFIXES)
            choice = "memory" if is_hdf5 else "none"
    for name, split in splits.items():
        with broken_named(split):
            keep = caching.CACHES[choice]
            splits[name] = keep(split, workdir / "cache" / name)
    return with_splits(source, splits)


@contextlib.contextmanager
def broken_named(split):
    """Names the picture or file of a split because of which reading fails."""
    try:
        yield
    except loop.INPUT_ERRORS as error:
        explain_broken(split, split.stored(), error)
        raise


def explain_broken(split, examples, error):
    """Raises UserError where a picture or a file is to blame for an error.

    Args:
      split: that was read.
      examples: dataset of those among which the broken one is.
      error: what TensorFlow raised.
    """
    try:
        for index, reason in inspection.broken_pictures(
            examples, split.load, preprocessing.check_picture
        ):
            if reason is not None:
                raise UserError(
                    f"{split.name(index)} cannot be decoded ({reason}); mend "
                    "it, or leave such pictures out with --skip_bad_images"
                ) from error
    except loop.INPUT_ERRORS as other:
        paths = {piece.path for piece in getattr(split, "pieces", ())}
        path = inspection.broken_file(sorted(paths))
        if path is not None:
            raise UserError(
                f"{path} is damaged ({inspection.reason_of(other)}); have the "
                "data set prepared again"
            ) from error


def explain_broken_batch(source, step, error):
    """Raises UserError where a picture of a training batch is to blame."""
    split = source.train
    start = step * FLAGS.batch_size // FLAGS.augment_repeats
    examples = pipeline.shuffled_examples(split, FLAGS.seed, start)
    # Batches are prepared ahead, by a data service in an order of its own.
    count = BATCHES_AHEAD * FLAGS.batch_size
    explain_broken(split, examples.take(count), error)


def training_batches(source, strategy, step):
    """Returns the distributed training batches from a step on."""
    return pipeline.distribute(
        strategy,
        lambda share: pipeline.training_batches(
            source.train,
            as_it_is if source.embedded else prepare_for_training,
            FLAGS.batch_size,
            FLAGS.seed,
            step,
            mix=mixing(source),
            repeats=FLAGS.augment_repeats,
            # Embeddings are read where they lie.
            data_service=None if source.embedded else FLAGS.data_service,
            share=share,
        ),
    )


def mixing(source):
    """Returns what blends the pictures of a batch, or None for nothing."""
    alphas = {
        name: FLAGS[f"{name}_alpha"].value
        for name in FLAGS.augment
        if name in augment.BATCH_AUGMENTATIONS
    }

    def mix(images, labels, seed):
        targets = tf.one_hot(labels, len(source.class_names))
        images = tf.cast(images, tf.float32)
        images, targets = augment.mix(images, targets, seed, alphas)
        return preprocessing.to_bytes(images), targets

    return mix if alphas else None


def evaluation_batches(source, split, strategy):
    """Returns the distributed evaluation batches of a split of a source.

    Returns:
      (the batches, how many there are).
    """
    prepare = as_it_is if source.embedded else prepare_for_evaluation
    batches = pipeline.distribute(
        strategy,
        lambda share: pipeline.evaluation_batches(
            split, prepare, FLAGS.batch_size, share
        ),
    )
    return batches, pipeline.num_evaluation_steps(split, FLAGS.batch_size)


def embed(source, model, strategy, workdir):
    """Returns the source with what a backbone makes of its pictures."""
    splits = splits_of(source)
    backbone = backbone_hash(model)
    for name, split in splits.items():
        batches, steps = evaluation_batches(source, split, strategy)
        bar = loop.progress_bar(
            steps,
            unit="batch",
            description=f"embedding {name}",
            leave=False,
            delay=2.0,
        )
        with broken_named(split), bar:
            kept = f"{name}-{fingerprint(split, backbone)}"
            splits[name] = embeddings.embedded(
                workdir / "embeddings" / kept,
                split,
                functools.partial(on_pictures(model.embed), training=False),
                strategy,
                batches,
                steps,
                bar,
            )
    return with_splits(source, splits)._replace(embedded=True)


def fingerprint(split, backbone):
    """Returns a name for all that the embeddings of a split depend on.

    Args:
      split: see `splits.py`.
      backbone: its `backbone_hash`.
    """
    values = settings.of_the_run()
    text = json.dumps(
        [
            split.fingerprint(),
            backbone,
            *(values.get(name) for name in OF_EMBEDDINGS),
        ]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def backbone_hash(model):
    """Returns a hash of all weights but the classifier's."""
    digest = hashlib.sha256()
    of_head = {id(variable) for variable in model.head.variables}
    for variable in model.variables:
        if id(variable) not in of_head:
            digest.update(np.asarray(variable.value).tobytes())
    return digest.hexdigest()


def as_it_is(embedding, seed=None):
    """Prepares what needs no preparation, for training and evaluation."""
    del seed
    return embedding


def prepare_for_training(encoded, seed):
    """Decodes, crops and augments a training picture, to uint8."""
    fold_in = tf.random.experimental.stateless_fold_in
    options = {
        "random_resized_crop": {
            "scale": settings.number_range("crop_scale"),
            "ratio": settings.number_range("crop_ratio"),
        },
        "color_jitter": {"strength": FLAGS.color_jitter_strength},
        "rand_augment": {
            "num_layers": FLAGS.rand_augment_layers,
            "magnitude": FLAGS.rand_augment_magnitude,
        },
        "random_erasing": {"probability": FLAGS.erasing_probability},
    }
    crop = functools.partial(
        preprocessing.center_crop, crop_fraction=FLAGS.crop_fraction
    )
    for name in FLAGS.augment:
        if name in preprocessing.TRAINING_CROPS:
            crop = functools.partial(
                preprocessing.TRAINING_CROPS[name],
                seed=fold_in(seed, 0),
                **options[name],
            )
    image = crop(encoded, FLAGS.image_size, interpolation=FLAGS.interpolation)
    for index, name in enumerate(FLAGS.augment):
        if name in augment.AUGMENTATIONS:
            image = augment.AUGMENTATIONS[name](
                image, fold_in(seed, index + 1), **options.get(name, {})
            )
    return preprocessing.to_bytes(image)


def prepare_for_evaluation(encoded):
    """Decodes and crops an evaluation picture, to uint8."""
    image = preprocessing.center_crop(
        encoded, FLAGS.image_size, FLAGS.crop_fraction, FLAGS.interpolation
    )
    return preprocessing.to_bytes(image)


def on_pictures(function):
    """Returns a function of pictures from one of normalised images.

    Both take `training` as well. It runs on the devices.
    """

    def normalized(pictures, training):
        images = preprocessing.normalize(pictures, FLAGS.normalization)
        return function(images, training=training)

    return normalized


def training_sample(source, count):
    """Returns the first pictures of training, as the model gets them.

    Args:
      source: a `datasets.Source`.
      count: how many, a multiple of 4; where there are fewer, some come twice.

    Returns:
      (float32 [count, size, size, 3] in 0..1 for people to look at, a list of
      names of classes).
    """
    batches = pipeline.training_batches(
        source.train,
        prepare_for_training,
        # Several, because each batch is mixed in a way of its own.
        count // 4,
        FLAGS.seed,
        step=0,
        mix=mixing(source),
        repeats=FLAGS.augment_repeats,
    ).take(4)
    with broken_named(source.train):
        images, labels = zip(*batches, strict=True)
    return visible(source, (tf.concat(images, 0), tf.concat(labels, 0)))


def evaluation_sample(source, count):
    """Returns the same as `training_sample`, of the evaluation split."""
    batches = pipeline.evaluation_batches(
        source.evaluation, prepare_for_evaluation, count
    )
    with broken_named(source.evaluation):
        images, labels, weights = next(iter(batches))
    return visible(source, (images[weights > 0], labels[weights > 0]))


def visible(source, batch):
    """Returns a batch for people to look at: (images in 0..1, names)."""
    images, labels = batch
    images = tf.cast(images, tf.float32) / 255.0
    names = source.class_names
    if labels.dtype.is_integer:
        return images, [names[label] for label in labels]
    return images, [
        "\n".join(
            f"{names[label]} {row[label]:.0%}" for label in np.flatnonzero(row)
        )
        for row in labels.numpy()
    ]


def slug(dataset):
    """Returns a data set's name as a part of a file name."""
    return pathlib.Path(dataset).stem.replace(":", "-") or "pictures"
