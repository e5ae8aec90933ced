"""The model card: what a model is, for the people who find its files.

In the format of the Hugging Face hub: facts for programs on top, in YAML, and
text below. https://huggingface.co/docs/hub/model-cards
"""

import json
import pathlib
import re
from typing import NamedTuple

import jinja2

from train_loop.console import printable, text_table
from train_loop.workdir import read_json

TEMPLATE = pathlib.Path(__file__).with_suffix(".md")
# Keys of report.json -> what the hub calls them, and what people do.
HUB_METRICS = {
    "accuracy": ("accuracy", "Accuracy"),
    "top_5_accuracy": ("top_5_accuracy", "Top-5 accuracy"),
    "mean_class_accuracy": ("mean_class_accuracy", "Mean per-class accuracy"),
    "macro_f1": ("f1", "Macro F1"),
    "weighted_f1": ("weighted_f1", "Weighted F1"),
    "mean_average_precision": ("mean_average_precision", "mAP"),
    "mean_roc_auc": ("roc_auc", "Mean ROC-AUC"),
    "expected_calibration_error": (
        "expected_calibration_error",
        "Expected calibration error",
    ),
    "loss": ("loss", "Loss"),
}
# Folders of reports on the images that a run evaluates on, prepared as the
# run does.
REPORTS = re.compile(r"report(-checkpoint=\w+)?(-averaged=\w+)?")


class ExportedWeights(NamedTuple):
    """Which weights of a run are exported.

    Those of `step`; the average that the run keeps is `average`, "none" if it
    keeps none, and is what was exported if `averaged`.
    """

    step: int
    average: str
    averaged: bool

    def __str__(self):
        if self.average == "none":
            return f"those of step {self.step:,}"
        mean = f"the average (`--average={self.average}`) of the steps up to"
        if self.averaged:
            return f"{mean} {self.step:,}"
        return (
            f"those of step {self.step:,} itself (`--averaged=false`), not "
            f"{mean} it"
        )

    def find_report(self, workdir):
        """Returns what an evaluation of them measured; {} without one."""
        own = (self.step, self.average if self.averaged else "none")
        for path in sorted(workdir.path.glob("report*/report.json")):
            report = read_json(path)
            its = report.get("step"), report.get("average", "none")
            if REPORTS.fullmatch(path.parent.name) and its == own:
                return report
        return {}


class Card(NamedTuple):
    """What a card has beside the classifier itself.

    `dataset` is the name of what it was trained on, `recipe` {setting: text},
    `weights` which of the run's the files have, in words, `report` what an
    evaluation of these measured (empty without one), and `files` rows of text
    about the files, the header first.
    """

    dataset: str
    recipe: dict
    weights: str
    report: dict
    files: list


def model_card(classifier, card):
    """Returns the text of a card.

    Args:
      classifier: a `Classifier` that is `portable`.
      card: a `Card`.
    """
    mean, stddev, _ = classifier.preprocessing.normalization
    name = f"{classifier.model.name} on {card.dataset}"
    intervals = card.report.get("intervals", {})
    # Markdown, in which names of files and classes are printed as they are.
    template = jinja2.Template(
        TEMPLATE.read_text(),
        autoescape=False,
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    return template.render(
        card._asdict(),
        # What is JSON is YAML as well.
        facts="\n".join(
            f"{key}: {json.dumps(value)}"
            for key, value in _facts(name, card).items()
        ),
        name=name,
        model=classifier.model.name,
        class_names=[*map(printable, classifier.class_names)],
        preprocessing=classifier.preprocessing,
        mean=[f"{number:g}" for number in mean],
        stddev=[f"{number:g}" for number in stddev],
        results=[
            (title, card.report[key], intervals.get(key))
            for key, (_, title) in HUB_METRICS.items()
            if key in card.report
        ],
        files=text_table(card.files),
        has_keras="keras/model.keras" in [row[0] for row in card.files],
    )


def _facts(name, card):
    """Returns {key: value} for the hub."""
    measured = {k: v for k, v in card.report.items() if k in HUB_METRICS}
    facts = {
        "license": "other",
        "license_name": "to-be-filled-in",
        "library_name": "keras",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "resnet", "tensorflow", "keras"],
        "datasets": [card.dataset],
        "metrics": [HUB_METRICS[key][0] for key in measured] or ["accuracy"],
    }
    if measured:
        results = {
            "task": {"type": "image-classification"},
            "dataset": {"name": card.dataset, "type": card.dataset},
            "metrics": [
                {
                    "type": HUB_METRICS[key][0],
                    "name": HUB_METRICS[key][1],
                    "value": value,
                }
                for key, value in measured.items()
            ],
        }
        facts["model-index"] = [{"name": name, "results": [results]}]
    return facts
