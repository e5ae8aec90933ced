"""HDF5 files with the layout of the hand signs, and invalid ones."""

import h5py
import numpy as np
import pytest
import tensorflow as tf
from samples import read_all, write_hand_signs

from train_loop.data.datasets import choose_splits, open_dataset
from train_loop.errors import UserError


def test_hand_signs_are_read_from_a_pair_of_hdf5_files(tmp_path):
    write_hand_signs(tmp_path)
    for name in (tmp_path / "train_signs.h5", tmp_path):
        stored = open_dataset(str(name))
        assert stored.class_names == tuple("012345")
        for split, count in (("train", 12), ("test", 6)):
            with h5py.File(tmp_path / f"{split}_signs.h5") as file:
                expected = {
                    (pixels.tobytes(), label)
                    for pixels, label in zip(
                        file[f"{split}_set_x"][:],
                        file[f"{split}_set_y"][:],
                        strict=True,
                    )
                }
            examples = read_all(stored.splits[split])
            assert len(examples) == count
            assert expected == {
                (tf.io.decode_png(image).numpy().tobytes(), label)
                for image, label in examples
            }
    data = choose_splits(stored, "train+test[:3]", "test[3:]")
    assert data.train.num_examples == 15


def break_hdf5(path, name, value):
    with h5py.File(path, "a") as file:
        del file[name]
        if value is not None:
            file[name] = value


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("train_set_y", np.full(12, 6), r"train_set_y\[0\] is 6"),
        ("train_set_y", np.full(12, -1), "is -1, but must be from 0 to 5"),
        ("train_set_y", np.zeros(11, int), "with 11 labels"),
        ("train_set_y", np.zeros(12), "labels of float64"),
        ("train_set_x", np.zeros((12, 64, 64, 3)), "it is float64"),
        (
            "train_set_x",
            np.zeros((12, 64, 64), "uint8"),
            r"uint8 \[12, 64, 64\]",
        ),
        ("train_set_y", None, "train_set_y"),
        ("train_set_x", None, "train_set_x not found"),
        ("train_set_x", np.zeros((12, 0, 9, 3), "uint8"), "not empty, with n"),
    ],
)
def test_invalid_hdf5_files_are_an_error(tmp_path, name, value, expected):
    write_hand_signs(tmp_path)
    path = tmp_path / "train_signs.h5"
    break_hdf5(path, name, value)
    with pytest.raises(UserError, match=expected) as error:
        open_dataset(str(path))
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_identity_of_hdf5_files_does_not_depend_on_their_names(tmp_path):
    write_hand_signs(tmp_path)
    expected = choose_splits(
        open_dataset(f"{tmp_path}/train_signs.h5")
    ).contents
    assert choose_splits(open_dataset(str(tmp_path))).contents == expected
    (tmp_path / "train_signs.h5").rename(tmp_path / "a.H5")
    assert choose_splits(open_dataset(str(tmp_path))).contents == expected


def test_identity_of_hdf5_files_depends_on_their_labels(tmp_path):
    identities = set()
    for folder in (tmp_path / "here", tmp_path / "there"):
        folder.mkdir()
        write_hand_signs(folder)
        stored = open_dataset(str(folder))
        identities.add(stored.splits["train"].identity)
    assert len(identities) == 1
    break_hdf5(folder / "train_signs.h5", "train_set_y", np.arange(12) % 5)
    stored = open_dataset(str(folder))
    identities.add(stored.splits["train"].identity)
    assert len(identities) == 2
