"""A shipment: a classifier written in several formats, each of them proven."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import shutil
from collections.abc import Iterable

from train_loop.builders.model import CONTENTS
from train_loop.errors import UserError, shortage
from train_loop.export import comparison
from train_loop.export.formats import FORMATS
from train_loop.export.network import Network
from train_loop.export.rewriting import quantizable
from train_loop.prediction.classifier import Classifier
from train_loop.workdir import written_aside

# How its files compare with the model, for later model cards.
MEASURED = "measured.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Shipment:
    """A classifier, and what goes with it into its files.

    Args:
      classifier: a `Classifier` that is `portable`.
      calibration: iterable of uint8 [image_size, image_size, 3], whose ranges
        those of int8 become.
      top_k: how many classes an answer names, where a file names any.
    """

    classifier: Classifier
    calibration: Iterable = ()
    top_k: int = 5

    @functools.cached_property
    def network(self):
        """The `Network` that several formats share."""
        return Network(self.classifier)

    @functools.cached_property
    def quantizable_network(self):
        """The `Network` for files in int8, and those beside them."""
        return Network(self.classifier, quantizable)

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

    def write(self, name, folder, pictures):
        """Writes one format, and lets others run it.

        Args:
          name: of `FORMATS`.
          folder: in which the format gets a folder of its own name. An
            earlier one is replaced when all is proven.
          pictures: `comparison.Pictures`.

        Returns:
          A list with a `comparison.Measured` for each file, and one with a
          line for each file that failed: that cannot be written or run, or
          whose predictions are not the model's. If all failed, an earlier
          export stays.
        """
        path, row = pathlib.Path(folder) / name, FORMATS[name]
        measured, failures = [], {}
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
            found = self._measure(row, unfinished, files, pictures)
            for file, each in zip(files, found, strict=True):
                reason = comparison.problem(each, file.is_exact)
                if reason is not None:
                    failures[file.path] = reason
            for file in failures:
                broken = unfinished / file
                if broken.is_dir():
                    shutil.rmtree(broken)
                else:
                    broken.unlink(missing_ok=True)
            measured = [
                each._replace(name=f"{name}/{each.name}")
                for file, each in zip(files, found, strict=True)
                if file.path not in failures
            ]
            if not measured:
                raise _NothingWrittenError
            (unfinished / MEASURED).write_text(comparison.to_json(measured))
        return measured, [f"{name}/{k}: {v}" for k, v in failures.items()]

    def _measure(self, row, folder, files, pictures):
        """Returns a `Measured` for each file, or the reason why not."""
        if row.read is None:
            return comparison.measure(folder, files, pictures)
        return [
            comparison.compare(
                str(file),
                comparison.bytes_of(folder / file.path),
                row.read(self.classifier, folder / file.path)
                .probabilities(pictures.images)
                .numpy(),
                pictures,
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


def shipped(folder):
    """Returns a `comparison.Measured` for each file that was ever shipped.

    Args:
      folder: of the exports.
    """
    return [
        each
        for name in FORMATS
        if (path := pathlib.Path(folder) / name / MEASURED).is_file()
        for each in comparison.from_json(path.read_text())
    ]


def check_replaceable(names, folder):
    """Raises UserError where something else would be replaced.

    Args:
      names: of `FORMATS`.
      folder: of the exports.
    """
    for name in names:
        path = pathlib.Path(folder) / name
        if path.exists() and not (path / CONTENTS).is_file():
            raise UserError(
                f"{path} is there, and is no earlier export: it has no "
                f"{CONTENTS}; move it, or name another --export_dir"
            )
