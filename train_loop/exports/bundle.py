"""A bundle: a classifier written in several formats, each of them verified."""

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

# How a format's files compare with the model, for later model cards.
MEASURED = "measured.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Bundle:
    """A classifier, and what its files need besides.

    Args:
      classifier: a `Classifier` that is `portable`.
      calibration: iterable of uint8 [image_size, image_size, 3], whose ranges
        those of int8 become.
      top_k: how many classes a prediction has, in files that return names.
    """

    classifier: Classifier
    calibration: Iterable = ()
    top_k: int = 5

    @functools.cached_property
    def graph(self):
        """The `InferenceGraph` that several formats share."""
        return InferenceGraph(with_folded_norms(self.classifier))

    @functools.cached_property
    def quantizable_graph(self):
        """The `InferenceGraph` for files in int8, and those beside them."""
        return InferenceGraph(quantizable(self.classifier))

    @property
    def contents(self):
        """What a program must know of the files, as a value for JSON."""
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
        """Writes one format, and verifies it.

        Args:
          name: of `EXPORT_FORMATS`.
          folder: in which the format gets a folder of its own name. An
            earlier one is replaced when all is verified.
          reference: `ReferenceImages`.

        Returns:
          A list with the `FileMetrics` of each file, and one with a line for
          each file that failed: that cannot be written or run, or whose
          predictions are not the model's. If all failed, an earlier export
          stays.
        """
        path, row = pathlib.Path(folder) / name, EXPORT_FORMATS[name]
        metrics, failures = [], {}
        with (
            contextlib.suppress(_NothingWrittenError),
            atomic_write(path) as unfinished,
        ):
            unfinished.mkdir()
            contents = json.dumps(self.contents, indent=2)
            (unfinished / DESCRIPTION).write_text(contents + "\n")
            for file in dict.fromkeys(file.path for file in row.files):
                try:
                    row.write(self, unfinished / file)
                except Exception as error:
                    failures[file] = _reason(error)
            files = [file for file in row.files if file.path not in failures]
            found = self._verify(row, unfinished, files, reference)
            for file, each in zip(files, found, strict=True):
                reason = reason_to_reject(each, file.is_exact)
                if reason is not None:
                    failures[file.path] = reason
            for file in failures:
                _remove(unfinished / file)
            metrics = [
                each._replace(name=f"{name}/{each.name}")
                for file, each in zip(files, found, strict=True)
                if file.path not in failures
            ]
            if not metrics:
                raise _NothingWrittenError
            (unfinished / MEASURED).write_text(to_json(metrics))
        return metrics, [f"{name}/{k}: {v}" for k, v in failures.items()]

    def _verify(self, row, folder, files, reference):
        """Returns the `FileMetrics` of each file, or why there are none."""
        if row.read is None:
            return run_files(folder, files, reference)
        return [
            compare_with_model(
                str(file),
                num_bytes(folder / file.path),
                row.read(self.classifier, folder / file.path)
                .probabilities(reference.images)
                .numpy(),
                reference,
            )
            for file in files
        ]


class _NothingWrittenError(Exception):
    """Keeps an earlier export, as all files of the new one failed."""


def _reason(error):
    """Returns in a line why a file cannot be written.

    Converters of other projects raise exceptions of any kind.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) or resource_error(error):
        # The next file would fail as well.
        raise error
    text = " ".join(str(error).split())[:300]
    return f"cannot be written ({type(error).__name__}: {text})"


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def to_json(metrics):
    """Returns several `FileMetrics` as text, for `from_json`."""
    values = [each._asdict() for each in metrics]
    return json.dumps(values, indent=2, default=float) + "\n"


def from_json(text):
    """Returns several `FileMetrics` from the text of `to_json`."""
    return [FileMetrics(**values) for values in json.loads(text)]


def exported_metrics(folder):
    """Returns the `FileMetrics` of each exported file, earlier ones too.

    Args:
      folder: of the exports.
    """
    return [
        each
        for name in EXPORT_FORMATS
        if (path := pathlib.Path(folder) / name / MEASURED).is_file()
        for each in from_json(path.read_text())
    ]


def check_replaceable(names, folder):
    """Raises UserError where something else would be replaced.

    Args:
      names: of `EXPORT_FORMATS`.
      folder: of the exports.
    """
    for name in names:
        path = pathlib.Path(folder) / name
        if path.exists() and not (path / DESCRIPTION).is_file():
            raise UserError(
                f"{path} is there, and is no earlier export: it has no "
                f"{DESCRIPTION}; move it, or name another --export_dir"
            )


TEMPLATE = pathlib.Path(__file__).with_name("model_card.md")
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
REPORTS = re.compile(
    r"report(-checkpoint=\w+)?(-(averaged|use_weight_average)=\w+)?"
)


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
        flag = f"`--weight_average={self.average}`"
        mean = f"the average ({flag}) of the steps up to"
        if self.averaged:
            return f"{mean} {self.step:,}"
        return (
            f"those of step {self.step:,} itself "
            f"(`--use_weight_average=false`), not "
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
