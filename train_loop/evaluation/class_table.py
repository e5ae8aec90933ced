"""The table of classes on the page of a report."""

import numpy as np

from train_loop.evaluation import page
from train_loop.evaluation.confusion import mistakes, mostly_taken_for

# How many mistakes there are in the whole table, and of a class, at most.
MISTAKES, MISTAKES_OF_A_CLASS = 1000, 4


def class_table(findings):
    """Returns the table as HTML: a row for each class, with pictures."""
    predictions, counts = findings.predictions, findings.counts
    names, examples = predictions.class_names, findings.examples
    shares = {
        "precision": counts.precisions,
        "F1": counts.f1,
        "AP": findings.ranking.average_precisions,
        "AUC": findings.ranking.roc_aucs,
    }
    hits = _by_class(predictions, _surest_hits(predictions))
    missed = _by_class(predictions, mistakes(predictions))
    room = MISTAKES // len(names)
    room = max(1, min(room, MISTAKES_OF_A_CLASS))
    named = [
        f'<div class="named">{_pictures(predictions, best[:1])}'
        f"{page.name(name)}</div>"
        for name, best in zip(names, hits, strict=True)
    ]
    worst = [_pictures(predictions, images[:room]) for images in missed]
    numbers = range(len(names))
    return page.sortable_table(
        [
            page.Column("class", named, names),
            _shares("accuracy", counts.accuracies),
            page.Column("images", [f"{n:,}" for n in examples], examples),
            *(_shares(title, of) for title, of in shares.items()),
            _taken_for(predictions),
            page.Column("number", [f"#{n}" for n in numbers], numbers),
            page.Column("surest mistakes", worst, [len(m) for m in missed]),
        ],
        "classes",
    )


def _shares(title, shares):
    cells = ["–" if np.isnan(n) else f"{100 * n:.1f}" for n in shares[:, 0]]
    return page.Column(title, cells, shares[:, 0])


def _taken_for(predictions):
    """Returns the column of what each class is most often mistaken for."""
    cells, (taken, images) = [], mostly_taken_for(predictions)
    for most, count in zip(taken, images, strict=True):
        name = page.name(predictions.class_names[most])
        cells.append(f"{name} ({count})" if count else "")
    return page.Column("mostly taken for", cells, images)


def _surest_hits(predictions):
    hits = np.flatnonzero(predictions.correct)
    return hits[np.argsort(-predictions.confidences[hits], kind="stable")]


def _by_class(predictions, images):
    """Returns the numbers of images class by class, in the same order."""
    labels = predictions.labels[images]
    images = images[np.argsort(labels, kind="stable")]
    counts = np.bincount(labels, minlength=predictions.num_classes)
    return np.split(images, np.cumsum(counts)[:-1])


def _pictures(predictions, images):
    shown = [
        page.image(predictions.picture(index), _describe(predictions, index))
        for index in images
    ]
    return f'<div class="pictures">{"".join(shown)}</div>'


def _describe(predictions, index):
    taken = predictions.class_names[predictions.predicted[index]]
    confidence = predictions.confidences[index]
    return f"{predictions.images[index]}: {taken} {confidence:.0%}"
