"""A classifier exported in several formats, with its model card."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import re
import shutil
from collections.abc import Iterable
from typing import NamedTuple

import jinja2

from train_loop.builders.model import DESCRIPTION
from train_loop.console import printable, text_table
from train_loop.errors import UserError, resource_error
from train_loop.exports.formats import (
    EXPORT_FORMATS,
    InferenceGraph,
    quantizable,
    with_folded_norms,
)
from train_loop.exports.verification import (
    FileMetrics,
    compare_with_model,
    num_bytes,
    reason_to_reject,
    run_files,
)
from train_loop.prediction.classifier import Classifier
from train_loop.workdir import atomic_write, read_json

# The metrics of a format's files, for later model cards.
MEASURED = "measured.json"

TEMPLATE = pathlib.Path(__file__).with_name("model_card.md")
# Key of report.json -> (name on the Hugging Face Hub, title).
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
# Folders of reports on the run's own evaluation split and preprocessing.
REPORTS = re.compile(
    r"report(-checkpoint=\w+)?(-(averaged|use_weight_average)=\w+)?"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Bundle:
    """A classifier, and the other inputs of an export.

    Args:
      classifier: a `Classifier` that is `portable`.
      calibration: iterable of uint8 [image_size, image_size, 3], the images
        that calibrate int8 quantization.
      top_k: number of classes that a file with class names returns.
    """

    classifier: Classifier
    calibration: Iterable = ()
    top_k: int = 5

    @functools.cached_property
    def graph(self):
        """The `InferenceGraph` that several formats use."""
        return InferenceGraph(with_folded_norms(self.classifier))

    @functools.cached_property
    def quantizable_graph(self):
        """The `InferenceGraph` of all LiteRT files."""
        return InferenceGraph(quantizable(self.classifier))

    @property
    def contents(self):
        """The content of `classifier.json`: model, classes, preprocessing."""
        preprocessing = self.classifier.preprocessing
        return {
            "model": self.classifier.model.name,
            "class_names": self.classifier.class_names,
            "preprocessing": {
                **preprocessing._asdict(),
                "normalization": preprocessing.normalization._asdict(),
            },
        }

    def write(self, name, folder, reference):
        """Writes one format and verifies each of its files.

        Args:
          name: a key of `EXPORT_FORMATS`.
          folder: parent of the format's folder, which is called `name`. It
            replaces an earlier one after verification.
          reference: `ReferenceImages`.

        Returns:
          The `FileMetrics` of each verified file, and a line for each file
          that failed: it cannot be written or run, or its predictions differ
          from the model's. If all files failed, the earlier export remains.
        """
        path, entry = pathlib.Path(folder) / name, EXPORT_FORMATS[name]
        metrics, failures = [], {}
        with (
            contextlib.suppress(_NothingWrittenError),
            atomic_write(path) as unfinished,
        ):
            unfinished.mkdir()
            contents = json.dumps(self.contents, indent=2)
            (unfinished / DESCRIPTION).write_text(contents + "\n")
            for file in dict.fromkeys(file.path for file in entry.files):
                try:
                    entry.write(self, unfinished / file)
                except Exception as error:
                    failures[file] = _reason(error)
            files = [file for file in entry.files if file.path not in failures]
            results = self._verify(entry, unfinished, files, reference)
            for file, each in zip(files, results, strict=True):
                reason = reason_to_reject(each, file.is_exact)
                if reason is not None:
                    failures[file.path] = reason
            for file in failures:
                _remove(unfinished / file)
            metrics = [
                each._replace(name=f"{name}/{each.name}")
                for file, each in zip(files, results, strict=True)
                if file.path not in failures
            ]
            if not metrics:
                raise _NothingWrittenError
            (unfinished / MEASURED).write_text(to_json(metrics))
        return metrics, [f"{name}/{k}: {v}" for k, v in failures.items()]

    def _verify(self, entry, folder, files, reference):
        """Returns for each file its `FileMetrics`, or why it cannot be run."""
        if entry.read is None:
            return run_files(folder, files, reference)
        return [
            compare_with_model(
                str(file),
                num_bytes(folder / file.path),
                entry.read(self.classifier, folder / file.path)
                .probabilities(reference.images)
                .numpy(),
                reference,
            )
            for file in files
        ]


def to_json(metrics):
    """Returns a list of `FileMetrics` as text, for `from_json`."""
    values = [each._asdict() for each in metrics]
    return json.dumps(values, indent=2, default=float) + "\n"


def from_json(text):
    """Returns the list of `FileMetrics` in the text of `to_json`."""
    return [FileMetrics(**values) for values in json.loads(text)]


def exported_metrics(folder):
    """Returns the `FileMetrics` of all exported files in a folder.

    Args:
      folder: the export folder, which earlier exports may share.
    """
    return [
        each
        for name in EXPORT_FORMATS
        if (path := pathlib.Path(folder) / name / MEASURED).is_file()
        for each in from_json(path.read_text())
    ]


def check_replaceable(names, folder):
    """Checks that an export would only replace an earlier export.

    Args:
      names: keys of `EXPORT_FORMATS`.
      folder: the export folder.

    Raises:
      UserError: one of the formats' folders is something else.
    """
    for name in names:
        path = pathlib.Path(folder) / name
        if path.exists() and not (path / DESCRIPTION).is_file():
            raise UserError(
                f"{path}: not an earlier export (it has no {DESCRIPTION}). "
                "Move it, or pass another --export_dir."
            )


class ExportedWeights(NamedTuple):
    """Which weights of a run are exported.

    `step` is the step of the checkpoint, `average` the run's --weight_average
    ("none" without one). `averaged` is true if the average is exported.
    """

    step: int
    average: str
    averaged: bool

    def __str__(self):
        if self.average == "none":
            return f"step {self.step:,}"
        average = f"the average (`--weight_average={self.average}`)"
        if self.averaged:
            return f"{average} up to step {self.step:,}"
        return (
            f"step {self.step:,} (`--use_weight_average=false`), not {average}"
        )

    def find_report(self, workdir):
        """Returns the `report.json` of these weights, or {} without one."""
        key = (self.step, self.average if self.averaged else "none")
        for path in sorted(workdir.path.glob("report*/report.json")):
            report = read_json(path)
            found = report.get("step"), report.get("average", "none")
            if REPORTS.fullmatch(path.parent.name) and found == key:
                return report
        return {}


class Card(NamedTuple):
    """The content of a model card besides the classifier.

    `dataset` is the name of the training data, `recipe` is {setting: text},
    `weights` is the text of `ExportedWeights`, `report` is their `report.json`
    (or empty), and `files` is a table of the files, the header first.
    """

    dataset: str
    recipe: dict
    weights: str
    report: dict
    files: list


def model_card(classifier, card):
    """Returns the text of a model card.

    Args:
      classifier: a `Classifier` that is `portable`.
      card: a `Card`.
    """
    mean, stddev, _ = classifier.preprocessing.normalization
    name = f"{classifier.model.name} on {card.dataset}"
    intervals = card.report.get("intervals", {})
    # The result is Markdown, so file and class names need no HTML escapes.
    template = jinja2.Template(
        TEMPLATE.read_text(),
        autoescape=False,
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    return template.render(
        card._asdict(),
        # JSON is valid YAML.
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
    """Returns {key: value} for the metadata that the hub reads."""
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


class _NothingWrittenError(Exception):
    """Makes `atomic_write` keep the earlier export."""


def _reason(error):
    """Returns in one line why a file cannot be written.

    Third-party converters raise exceptions of any type.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) or resource_error(error):
        # A full disk fails the other files too.
        raise error
    text = " ".join(str(error).split())[:300]
    return f"cannot be written ({type(error).__name__}: {text})"


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
