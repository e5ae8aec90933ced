"""A shipment: a classifier written in several formats, each of them proven."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterable

from train_loop.classifier import Classifier
from train_loop.errors import UserError
from train_loop.shipping import comparison
from train_loop.shipping.formats import FORMATS
from train_loop.shipping.network import Network
from train_loop.workdir import written_aside

# What every format has beside its files, for programs.
CONTENTS = "classifier.json"
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
          A `comparison.Measured` for each file.

        Raises:
          UserError: it cannot be written, or answers otherwise than the model.
        """
        path = pathlib.Path(folder) / name
        with written_aside(path) as unfinished:
            unfinished.mkdir()
            contents = json.dumps(self.contents, indent=2)
            (unfinished / CONTENTS).write_text(contents + "\n")
            FORMATS[name].write(self, unfinished)
            measured = [
                each._replace(name=f"{name}/{each.name}")
                for each in self._measure(name, unfinished, pictures)
            ]
            for each, file in zip(measured, FORMATS[name].files, strict=True):
                comparison.check(each, file.is_exact)
            (unfinished / MEASURED).write_text(comparison.to_json(measured))
        return measured

    def _measure(self, name, folder, pictures):
        row = FORMATS[name]
        if row.read is None:
            return comparison.measure(folder, row.files, pictures)
        [file] = row.files
        classifier = row.read(self.classifier, folder / file.path)
        return [
            comparison.compare(
                str(file),
                comparison.bytes_of(folder / file.path),
                classifier.probabilities(pictures.images).numpy(),
                pictures,
            )
        ]


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
