"""The folder of a report: numbers, predictions, charts and a page."""

import csv

from train_loop.console import csv_cells
from train_loop.evaluation import page
from train_loop.evaluation.charts import CHARTS, write_charts
from train_loop.evaluation.class_table import class_table
from train_loop.evaluation.confusion import confused_pairs, mistakes
from train_loop.evaluation.folders import number, replacing, write_json
from train_loop.evaluation.measures import MEASURES

INTERVALS = (
    "Below each number: its 95 % confidence interval, exact (Clopper-Pearson) "
    "for accuracies, by bootstrap for the other metrics."
)

# What is shown on the page.
PAIRS, IMAGES_OF_A_PAIR, MISTAKES = 8, 6, 24


def write_report(folder, findings, facts=None, subject=None):
    """Writes a report, in the place of an earlier one.

    Until it is complete, the earlier one stays.

    Args:
      folder: of the report; it may not exist yet.
      findings: `Findings`.
      facts: {name: value for JSON} to stand in front of the numbers, such as
        what was measured.
      subject: what tells this report from those of something else, a value for
        JSON; nothing by default.

    Returns:
      What `report.json` holds.

    Raises:
      UserError: the folder cannot be written, or holds no report.
    """
    facts = facts or {}
    report = {**facts, **summarize(findings), "subject": subject or {}}
    with replacing(folder, "report.json") as unfinished:
        write_json(unfinished / "report.json", report)
        write_predictions(unfinished / "predictions.csv", findings.predictions)
        drawn = write_charts(unfinished, findings)
        text = _page(findings, facts, unfinished, drawn)
        (unfinished / "report.html").write_text(text, encoding="utf-8")
    return report


def summarize(findings):
    """Returns numbers, intervals and counts, as values for JSON.

    What is not defined is None: areas below curves where all examples are of
    one class.
    """
    summary = {
        "examples": len(findings.predictions),
        "classes": findings.predictions.num_classes,
        # They are left out of the means over classes; see `measure`.
        "classes_without_examples": int((findings.examples == 0).sum()),
        **{name: number(n) for name, n in findings.estimates.items()},
        "intervals": {
            name: [number(end) for end in ends]
            for name, ends in findings.intervals.items()
        },
    }
    if findings.temperature is not None:
        summary["with_temperature"] = {
            "temperature": findings.temperature,
            "loss": float(findings.tempered.losses.mean()),
            "expected_calibration_error": findings.tempered_error,
        }
    return summary


def write_predictions(path, predictions):
    """Writes a line for each image: what it is and what it is taken for.

    The five likeliest classes are parted by "|".
    """
    names = predictions.class_names
    columns = zip(
        predictions.images,
        predictions.labels,
        predictions.top_5,
        predictions.confidences,
        strict=True,
    )
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["image", "label", "prediction", "probability", "top_5"]
        )
        for image, label, top, probability in columns:
            row = [
                image,
                names[label],
                names[top[0]],
                f"{probability:.6f}",
                "|".join(names[number] for number in top),
            ]
            writer.writerow(csv_cells(row))


def _page(findings, facts, folder, drawn):
    sections = [page.cards(_cards(findings), INTERVALS)]
    sections += [
        page.chart(name, (folder / f"{name}.svg").read_text(encoding="utf-8"))
        for name in drawn
        if not CHARTS[name].is_pictures
    ]
    sections += [
        page.section(
            CHARTS[name].title, CHARTS[name].note, SHOWN[name](findings), "wide"
        )
        for name in drawn
        if CHARTS[name].is_pictures
    ]
    without = int((findings.examples == 0).sum())
    without = f"; {without:,} have no examples" if without else ""
    sections.append(
        page.section(
            "Classes",
            f"In percent{without}; sorted by a click on a title. In front of "
            "each name stands the surest hit.",
            class_table(findings),
            "wide",
        )
    )
    counts = {
        "images": f"{len(findings.predictions):,}",
        "classes": f"{findings.predictions.num_classes:,}",
    }
    return page.render("Evaluation", {**facts, **counts}, sections)


def _cards(findings):
    rows = []
    for name, measure in MEASURES.items():
        value = measure.format(findings.estimates[name])
        ends = measure.format_interval(*findings.intervals[name])
        rows.append((measure.title, value, ends, measure.meaning))
    if findings.temperature is not None:
        rows.append(
            (
                "Temperature",
                f"{findings.temperature:.3f}",
                f"calibration error {findings.tempered_error:.2%} with it",
                "what to divide the logits by; fitted on other images",
            )
        )
    return rows


def _pairs(findings):
    predictions = findings.predictions
    parts = []
    for pair in confused_pairs(predictions, PAIRS):
        label, taken = (
            page.name(predictions.class_names[number]) for number in pair[:2]
        )
        shown = pair.images[:IMAGES_OF_A_PAIR]
        parts.append(
            f"<h3>{label} → {taken}: {len(pair.images)} of "
            f"{findings.examples[pair.label]:,} ({pair.share:.0%})</h3>"
        )
        parts.append(
            page.gallery(
                [
                    (
                        predictions.picture(index),
                        f"{predictions.confidences[index]:.0%}",
                        predictions.images[index],
                    )
                    for index in shown
                ],
                "small",
            )
        )
    return "".join(parts)


def _mistakes(findings):
    predictions, names = findings.predictions, findings.predictions.class_names
    return page.gallery(
        [
            (
                predictions.picture(index),
                f"{page.name(names[predictions.labels[index]])}"
                f'<div class="wrong">{predictions.confidences[index]:.0%} '
                f"{page.name(names[predictions.predicted[index]])}</div>",
                predictions.images[index],
            )
            for index in mistakes(predictions)[:MISTAKES]
        ]
    )


# What the page shows in place of the charts of pictures.
SHOWN = {"confused_pairs": _pairs, "confident_mistakes": _mistakes}
