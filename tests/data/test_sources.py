"""Names of data sets that are none."""

import pytest

from train_loop.data.sources import open_stored
from train_loop.errors import UserError


def test_mistaken_names_are_one_clear_line(tmp_path):
    (tmp_path / "broken.h5").write_text("no HDF5")
    (tmp_path / "empty").mkdir()
    for name, expected in {
        "cifar": "cifar10",
        "digit": "did you mean digits",
        str(tmp_path / "nowhere"): "is not there, neither a folder",
        str(tmp_path / "none.h5"): "none.h5",
        str(tmp_path / "broken.h5"): "cannot be read as an HDF5 file",
        str(tmp_path / "empty"): "found no folder",
        "wiki40b": "is not for image classification",
    }.items():
        with pytest.raises(UserError, match=expected) as error:
            open_stored(name, data_dir=tmp_path)
        assert "\n" not in str(error.value)
