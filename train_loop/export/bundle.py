"""A bundle: a classifier written in several formats, each of them verified."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import shutil
from collections.abc import Iterable

from train_loop.builders.model import CONTENTS
from train_loop.errors import UserError, shortage
from train_loop.export.formats import EXPORT_FORMATS
from train_loop.export.rewriting import (
    InferenceGraph,
    quantizable,
    with_folded_norms,
)
from train_loop.export.verification import (
    FileMetrics,
    compare_with_model,
    num_bytes,
    reason_to_reject,
    run_files,
)
from train_loop.prediction.classifier import Classifier
from train_loop.workdir import written_aside

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
            written_aside(path) as unfinished,
        ):
            unfinished.mkdir()
            contents = json.dumps(self.contents, indent=2)
            (unfinished / CONTENTS).write_text(contents + "\n")
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
    if isinstance(error, OSError) or shortage(error):
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
        if path.exists() and not (path / CONTENTS).is_file():
            raise UserError(
                f"{path} is there, and is no earlier export: it has no "
                f"{CONTENTS}; move it, or name another --export_dir"
            )
