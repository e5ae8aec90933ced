"""Splits of a data set: slices, defaults, and the held-out fraction."""

import json

import numpy as np
import pytest
import tensorflow as tf
from samples import indexed, read_all, records, write_folder
from sklearn.datasets import load_digits

from train_loop.data.datasets import (
    EVALUATION_SPLITS,
    check_new,
    choose_splits,
    open_dataset,
    open_digits,
    spelling_warnings,
)
from train_loop.data.split import Dataset
from train_loop.errors import UserError


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"train_split": "trian"}, "--train_split=trian"),
        ({"train_split": "train[:9x%]"}, "or a slice such as train[:90%]"),
        ({"eval_split": "validation"}, "--eval_split=validation"),
        ({"eval_split": "train[:0]"}, "--eval_split=train[:0]: contains no i"),
        ({"validation_fraction": 0.001}, "--validation_fraction=0.001"),
        ({"validation_fraction": 1.0}, "--validation_fraction=1.0"),
    ],
)
def test_invalid_splits_are_an_error(tmp_path, options, expected):
    write_folder(tmp_path, {"cat": 5, "dog": 5})
    stored = open_dataset(str(tmp_path))
    with pytest.raises(UserError) as error:
        choose_splits(stored, **options)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def in_memory(**slices):
    """Returns a data set of 23 numbers; `slices` are {split: (begin, end)}."""
    split = indexed(23)
    splits = {name: split.slice(*ends) for name, ends in slices.items()}
    return Dataset(tuple(map(str, range(23))), splits)


@pytest.mark.parametrize("names", [EVALUATION_SPLITS, EVALUATION_SPLITS[::-1]])
def test_default_evaluation_split_is_the_first_that_exists(names):
    others = {name: (10 + i, 11 + i) for i, name in enumerate(names)}
    stored = in_memory(train=(0, 10), **others)
    data = choose_splits(stored)
    assert data.train.indices.tolist() == [*range(10)]
    [number] = data.evaluation.indices
    assert number == others["validation"][0]
    del stored.splits["validation"]
    [number] = choose_splits(stored).evaluation.indices
    assert number == others["val"][0]
    [number] = choose_splits(stored, eval_split="test").evaluation.indices
    assert number == others["test"][0]


def test_slices_of_several_splits_can_be_combined():
    stored = in_memory(train=(0, 10), test=(10, 20), more=(20, 23))
    data = choose_splits(stored, "train[:2]+more", "test[-3:]+train[9:]")
    assert data.train.indices.tolist() == [0, 1, 20, 21, 22]
    assert data.evaluation.indices.tolist() == [17, 18, 19, 9]


def test_holding_out_does_not_need_labels(tmp_path):
    split = records(23, tmp_path)
    stored = Dataset(("a", "b"), {"train": split})
    data = choose_splits(stored, validation_fraction=0.2)
    assert data.train.indices.tolist() == [*range(18)]
    assert data.evaluation.indices.tolist() == [*range(18, 23)]
    # At least one example on each side.
    for fraction, kept in ((0.001, 22), (0.999, 1)):
        data = choose_splits(stored, validation_fraction=fraction)
        assert data.train.num_examples == kept
        assert data.evaluation.num_examples == 23 - kept


def test_fraction_of_0_holds_out_nothing(tmp_path):
    data = choose_splits(in_memory(train=(0, 10)), validation_fraction=0)
    assert data.train.num_examples == 10
    assert data.evaluation is None
    assert [*data.splits] == [*data.contents["splits"]] == ["train"]
    assert "without evaluation" in data.note
    mapped = data.map(lambda name, split: split.slice(0, 3))
    assert (mapped.train.num_examples, mapped.evaluation) == (3, None)
    # An existing evaluation split is still used.
    stored = in_memory(train=(0, 10), test=(10, 12))
    data = choose_splits(stored, validation_fraction=0)
    assert data.evaluation.num_examples == 2


def test_class_with_a_single_image_cannot_be_split(tmp_path):
    write_folder(tmp_path, {"cat": 9, "dog": 1, "emu": 1})
    with pytest.raises(UserError) as error:
        choose_splits(open_dataset(str(tmp_path)))
    [line] = str(error.value).splitlines()
    for name in ("dog", "emu"):
        assert str(tmp_path / name / "0.jpeg") in line
    assert "cat" not in line
    write_folder(tmp_path, {"dog/more": 1, "emu/more": 1})
    with pytest.raises(UserError) as error:
        choose_splits(open_dataset(str(tmp_path)), validation_fraction=0.1)
    [line] = str(error.value).splitlines()
    assert "give 11 training and 2 evaluation images for 3 classes" in line
    for text in ("member", "y has", "test_size"):
        assert text not in line


def test_contents_identify_the_examples_in_json():
    stored = in_memory(train=(0, 10), test=(10, 20), more=(20, 23))
    contents = [
        choose_splits(stored, *specs).contents
        for specs in (
            ("train", "test"),
            (None, None),
            ("train", "more"),
            ("train[:9]", "test"),
            ("train[1:]+train[:1]", "test"),
        )
    ]
    renamed = stored._replace(class_names=stored.class_names[::-1])
    contents.append(choose_splits(renamed).contents)
    assert contents[0] == contents[1]
    assert contents[0]["splits"]["eval"]["images"] == 10
    assert len({json.dumps(each) for each in contents}) == 5
    for each in contents:
        assert json.loads(json.dumps(each)) == each


def test_map_applies_to_both_splits():
    data = choose_splits(in_memory(train=(0, 10), test=(10, 20)))
    halves = {"train": 5, "eval": 2}
    mapped = data.map(lambda name, split: split.slice(0, halves[name]))
    sizes = [split.num_examples for split in mapped.splits.values()]
    assert [*mapped.splits] == ["train", "eval"]
    assert sizes == [5, 2]
    np.testing.assert_array_equal(mapped.evaluation.indices, [10, 11])


def test_duplicate_class_names_are_rejected_for_new_runs():
    stored = in_memory(train=(0, 10), test=(10, 20))
    names = ["cat" if number in (3, 7) else str(number) for number in range(23)]
    data = choose_splits(stored._replace(class_names=tuple(names)))
    with pytest.raises(UserError) as error:
        check_new(data, "signs.h5")
    assert str(error.value).startswith(
        "--dataset=signs.h5: class names must be unique, but classes 3 and 7 "
        "are named 'cat'."
    )
    check_new(choose_splits(stored), "signs.h5")


def test_class_names_that_differ_in_spelling_get_a_warning():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    names = ["Cat", "cat", "dog", composed, decomposed, "a b", "a  b ", "CAFE"]
    case, form, spaces = spelling_warnings(names)
    assert case.startswith("classes 'Cat' and 'cat': differ only in case,")
    assert form.startswith(
        "classes 'caf\\xe9' and 'cafe\\u0301': differ only in Unicode form,"
    )
    assert spaces.startswith("classes 'a b' and 'a  b ': differ only in spaces")
    assert spelling_warnings(["cat", "dog", "cats"]) == []
    letters = [chr(code) for code in (*range(65, 91), *range(97, 123))]
    assert spelling_warnings(letters)[-1] == (
        "21 other class names: have several spellings."
    )


def test_invalid_names_are_an_error(tmp_path):
    (tmp_path / "broken.h5").write_text("not HDF5")
    (tmp_path / "empty").mkdir()
    for name, expected in {
        "cifar": "cifar10",
        "digit": "Did you mean digits",
        str(tmp_path / "nowhere"): "nowhere: not found. Pass a folder",
        str(tmp_path / "none.h5"): "none.h5",
        str(tmp_path / "broken.h5"): "Pass an HDF5 file with train_set_x",
        str(tmp_path / "empty"): "no class folders found. Use the layout",
        "wiki40b": "must have one image and one class label, not",
    }.items():
        with pytest.raises(UserError, match=expected) as error:
            open_dataset(name, data_dir=tmp_path)
        assert "\n" not in str(error.value)


def test_digits_equal_scikit_learn():
    stored = open_dataset("digits")
    assert stored.class_names == tuple("0123456789")
    examples = [e for split in stored.splits.values() for e in read_all(split)]
    pixels = np.array(
        [tf.io.decode_png(image).numpy().ravel() for image, _ in examples]
    )
    images, labels = load_digits(return_X_y=True)
    ours = {
        (row.tobytes(), label)
        for row, (_, label) in zip(
            np.round(pixels / 255.0 * 16).astype("uint8"),
            examples,
            strict=True,
        )
    }
    theirs = {
        (image.tobytes(), int(label))
        for image, label in zip(images.astype("uint8"), labels, strict=True)
    }
    assert ours == theirs
    assert len(examples) == 1797


def test_digits_hold_out_a_fifth_of_every_class():
    data = choose_splits(open_digits())
    train = np.bincount([label for _, label in read_all(data.train)])
    held_out = np.bincount([label for _, label in read_all(data.evaluation)])
    assert sum(held_out) == 360
    np.testing.assert_allclose(held_out / (train + held_out), 0.2, atol=0.01)
    again = choose_splits(open_digits())
    assert read_all(again.evaluation) == read_all(data.evaluation)
