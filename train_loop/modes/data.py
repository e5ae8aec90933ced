"""A look at the data before any long work: counts, broken images, a grid."""

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


def look_at_data(settings):
    """Looks through all images, counts them and draws some.

    With --skip_bad_images, those that a run would train and evaluate on.
    """
    check_run_or_new(settings)
    settings = resolve(settings)
    # Some are drawn, about as many as a batch has.
    check_memory(settings)
    workdir = Workdir.of(settings.workdir or new_workdir(settings.dataset))
    workdir.check_writable()
    check_outside_of_images(workdir, settings.dataset)
    data, refused = open_whole_data(settings)
    broken = check.find_broken(data, refused)
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
            f"{len(broken)} images cannot be decoded; mend them, or train "
            "without them: --skip_bad_images"
        )


def print_counts(data, dataset, path):
    """Prints how many images there are of each class.

    Of many classes, it prints a summary, and writes the rest to a CSV file.
    """
    counts = {n: check.count_labels(s, n) for n, s in data.splits.items()}
    for name, of_split in counts.items():
        for warning in check.balance_warnings(of_split, data.class_names):
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
        [name, *(of_split.get(number, 0) for of_split in counts.values())]
        for number, name in enumerate(data.class_names)
    ]
    head = ["class", *counts]
    if len(rows) <= MANY:
        texts = [[name, *map("{:,}".format, row)] for name, *row in rows]
        print(text_table([head, *texts]))
        return
    for name, of_split in counts.items():
        described = check.describe_counts(of_split, data.class_names)
        print(printable(f"{name}: {described}"))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        map(csv_cells, [head, *rows])
    )
    write_text(path, text.getvalue())
    print(f"All classes are counted in {path}.")


def print_duplicates(data, path):
    """Prints which images are exact duplicates of others.

    Of many groups, it prints the first few, and writes all to a CSV file.
    """
    found = check.find_duplicates([*data.splits.values()])
    groups = check.group_members(found.groups, data)
    of_kinds = {kind: [] for kind in check.DUPLICATE_KINDS}
    for group in groups:
        of_kinds[check.kind_of_group(group)].append(group)
    for kind, of_kind in of_kinds.items():
        shown = of_kind if len(groups) <= MANY else of_kind[: check.MAX_CLASSES]
        for group in shown:
            text = printable(check.describe_group(group))
            print(f"duplicates {kind}: {text}")
        if len(of_kind) > len(shown):
            print(
                f"duplicates {kind}: {len(of_kind) - len(shown):,} other groups"
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
    """Draws some images of each split, as a model gets them."""
    names = data.class_names
    labels = [class_label(names, number) for number in range(len(names))]
    without_font = [
        f"{label} for {name}"
        for number, (label, name) in enumerate(zip(labels, names, strict=True))
        if label == f"#{number}"
    ]
    if without_font:
        few = first_few(without_font)
        print(printable(f"No font here has the letters of some: {few}."))
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
        print(f"Some images are drawn in {path}.")
