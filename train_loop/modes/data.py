"""Data check before training: counts, broken images, duplicates, samples."""

import csv
import io

from train_loop.builders.data import (
    check_outside_of_images,
    make_batching,
    make_transforms,
    open_whole_data,
)
from train_loop.builders.training import check_memory
from train_loop.console import csv_cells, printable, text_table
from train_loop.data import batches, check
from train_loop.data.datasets import check_new
from train_loop.errors import MANY, UserError, first_few
from train_loop.evaluation.chart_style import class_label, write_image_grid
from train_loop.resolve import check_run_or_new, resolve
from train_loop.run import new_workdir
from train_loop.workdir import Workdir, write_text


def inspect_data(settings):
    """Checks and counts all images, and draws samples.

    With --skip_bad_images, broken images are not counted.

    Args:
      settings: explicit `Settings`.

    Raises:
      UserError: the dataset is invalid, or has broken images without
        --skip_bad_images.
    """
    check_run_or_new(settings)
    settings = resolve(settings)
    # The samples take about the memory of a batch.
    check_memory(settings)
    workdir = Workdir.of(settings.workdir or new_workdir(settings.dataset))
    workdir.check_writable()
    check_outside_of_images(workdir, settings.dataset)
    data, rejected = open_whole_data(settings)
    broken = check.find_broken(data, rejected)
    readable = check.without_broken(data, broken)
    print_counts(
        readable if settings.skip_bad_images else data,
        settings.dataset,
        workdir.counts,
    )
    for record in broken:
        print(printable(f"broken: {record['name']}: {record['reason']}"))
    print_duplicates(readable, workdir.duplicates)
    draw_images(workdir.pictures, readable, settings)
    if not workdir.is_run:
        check_new(data, settings.dataset)
    if not broken:
        print("All images can be decoded.")
    elif settings.skip_bad_images:
        print(printable(f"{check.describe_skipped(readable, broken)}."))
        check.check_not_empty(readable)
    else:
        raise UserError(
            f"--dataset={settings.dataset}: {len(broken)} images cannot be "
            "decoded. Fix or remove them, or pass --skip_bad_images."
        )


def print_counts(data, dataset, path):
    """Prints the number of images of each class.

    For many classes, it prints a summary, and writes all to a CSV file.
    """
    counts = {n: check.count_labels(s, n) for n, s in data.splits.items()}
    for name, split_counts in counts.items():
        for warning in check.balance_warnings(split_counts, data.class_names):
            print(printable(f"warning: {name}: {warning}"))
    print(
        f"{dataset}: {len(data.class_names):,} classes; "
        + "; ".join(
            f"{split.num_examples:,} images for {name}, "
            f"{split.num_bytes / 1e6:,.1f} MB"
            for name, split in data.splits.items()
        )
    )
    rows = [
        [name, *(each.get(number, 0) for each in counts.values())]
        for number, name in enumerate(data.class_names)
    ]
    head = ["class", *counts]
    if len(rows) <= MANY:
        texts = [[name, *map("{:,}".format, row)] for name, *row in rows]
        print(text_table([head, *texts]))
        return
    for name, split_counts in counts.items():
        described = check.describe_counts(split_counts, data.class_names)
        print(printable(f"{name}: {described}"))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        map(csv_cells, [head, *rows])
    )
    write_text(path, text.getvalue())
    print(f"The counts of all classes are in {path}.")


def print_duplicates(data, path):
    """Prints groups of exact duplicates.

    For many groups, it prints the first few, and writes all to a CSV file.
    """
    found = check.find_duplicates([*data.splits.values()])
    groups = check.group_members(found.groups, data)
    by_kind = {kind: [] for kind in check.DUPLICATE_KINDS}
    for group in groups:
        by_kind[check.kind_of_group(group)].append(group)
    for kind, members in by_kind.items():
        shown = members if len(groups) <= MANY else members[: check.MAX_CLASSES]
        for group in shown:
            text = printable(check.describe_group(group))
            print(f"duplicates {kind}: {text}")
        if len(members) > len(shown):
            print(
                f"duplicates {kind}: {len(members) - len(shown):,} other groups"
            )
    if len(groups) > MANY:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["group", "image", "split", "class"])
        for number, group in enumerate(groups):
            writer.writerows(csv_cells([number, *member]) for member in group)
        write_text(path, text.getvalue())
        print(f"All duplicates are listed in {path}.")


def draw_images(path, data, settings):
    """Draws samples of each split, as the model gets them."""
    names = data.class_names
    labels = [class_label(names, number) for number in range(len(names))]
    without_font = [
        f"{label} for {name}"
        for number, (label, name) in enumerate(zip(labels, names, strict=True))
        if label == f"#{number}"
    ]
    if without_font:
        few = first_few(without_font)
        print(
            printable(
                "Class names drawn as numbers, because no installed font has "
                f"their letters: {few}."
            )
        )
    data = data._replace(class_names=tuple(labels))
    transforms, shown = make_transforms(settings, data), {}
    if data.train.num_examples:
        shown["Training"] = batches.training_sample(
            data, transforms, make_batching(settings)
        )
    if data.evaluation is not None and data.evaluation.num_examples:
        shown["Evaluation"] = batches.evaluation_sample(data, transforms)
    if shown:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image_grid(path, shown)
        print(f"Samples are drawn in {path}.")
