"""A look at the data before any long work: counts, broken images, a grid."""

from train_loop.assembly import (
    make_batching,
    make_transforms,
    open_whole_data,
)
from train_loop.data import check, samples
from train_loop.errors import UserError
from train_loop.evaluation.figures import write_images
from train_loop.run import new_workdir
from train_loop.settling import settle
from train_loop.training.reports import table
from train_loop.workdir import Workdir


def look_at_data(settings):
    """Looks through all images, counts them and draws some.

    With --skip_bad_images, those that a run would train and evaluate on.
    """
    settings = settle(settings)
    workdir = Workdir.of(settings.workdir or new_workdir(settings.dataset))
    workdir.check_writable()
    data, refused = open_whole_data(settings)
    broken = check.find_broken(data, refused)
    readable = check.without_broken(data, broken)
    print_counts(
        readable if settings.skip_bad_images else data, settings.dataset
    )
    for record in broken:
        # A file's name may hold bytes that cannot be printed.
        name = record["name"].encode(errors="backslashreplace").decode()
        print(f"broken: {name}: {record['reason']}")
    draw(workdir.pictures, readable, settings)
    if not broken:
        print("All images can be decoded.")
    elif settings.skip_bad_images:
        print(f"{check.describe_left_out(readable, broken)}.")
        check.check_not_empty(readable)
    else:
        raise UserError(
            f"{len(broken)} images cannot be decoded; mend them, or train "
            "without them: --skip_bad_images"
        )


def print_counts(data, dataset):
    """Prints how many images there are of each class."""
    counts = {n: check.count_labels(s, n) for n, s in data.splits.items()}
    for name, of_split in counts.items():
        for warning in check.balance_warnings(of_split, data.class_names):
            print(f"warning: {name}: {warning}")
    print(
        f"{dataset}: {len(data.class_names)} classes; "
        + "; ".join(
            f"{split.num_examples:,} images for {name}, "
            f"{split.num_bytes / 1e6:,.1f} MB"
            for name, split in data.splits.items()
        )
    )
    rows = [
        [name, *(f"{counts[split].get(label, 0):,}" for split in counts)]
        for label, name in enumerate(data.class_names)
    ]
    print(table([["class", *counts], *rows]))


def draw(path, data, settings):
    """Draws some images of each split, as a model gets them."""
    transforms, shown = make_transforms(settings, data), {}
    if data.train.num_examples:
        shown["Training"] = samples.training_sample(
            data, transforms, make_batching(settings)
        )
    if data.evaluation.num_examples:
        shown["Evaluation"] = samples.evaluation_sample(data, transforms)
    if shown:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_images(path, shown)
        print(f"Some images are drawn in {path}.")
