"""The formats that answers are printed in, as lines of text."""

import csv
import io
import json

from train_loop.console import csv_cells, text_table


def as_table(answers):
    """Yields a line for each picture that could be read, of all its answers."""
    rows = [
        [image, *(f"{label} {part:.1%}" for label, part in predictions)]
        for image, predictions, error in answers
        if not error
    ]
    if rows:
        ranks = [str(rank) for rank in range(1, len(rows[0]))]
        yield from text_table([["image", *ranks], *rows]).splitlines()


def as_json(answers):
    """Yields a list: {"image", "predictions"} or {"image", "error"} each."""
    opening = "["
    for image, predictions, error in answers:
        record = {"image": image, "error": error}
        if not error:
            record = {
                "image": image,
                "predictions": [
                    {"label": label, "probability": probability}
                    for label, probability in predictions
                ],
            }
        yield opening + json.dumps(record)
        opening = ","
    yield "]" if opening == "," else "[]"


def as_csv(answers):
    """Yields a line for each prediction, or for a picture's error."""
    yield _csv("image", "rank", "label", "probability", "error")
    for image, predictions, error in answers:
        if error:
            yield _csv(image, "", "", "", error)
        for rank, (label, probability) in enumerate(predictions, 1):
            yield _csv(image, rank, label, probability, "")


def _csv(*fields):
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(csv_cells(fields))
    return line.getvalue()


# Name -> function of `Answer`s.
ANSWER_FORMATS = {"table": as_table, "json": as_json, "csv": as_csv}
