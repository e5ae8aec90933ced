"""What a run takes of a data set: splits, parts, what is held out."""

import json

import numpy as np
import pytest
from samples import indexed, records, write_folder

from train_loop.data.sources import open_stored
from train_loop.data.stored import (
    EVALUATION_SPLITS,
    Stored,
    check_new,
    choose_splits,
    spelling_warnings,
)
from train_loop.errors import UserError


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"train_split": "trian"}, "--train_split=trian"),
        ({"train_split": "train[:9x%]"}, "parts of it such as"),
        ({"eval_split": "validation"}, "--eval_split=validation"),
        ({"eval_split": "train[:0]"}, "holds no images"),
        ({"validation_fraction": 0.001}, "--validation_fraction=0.001"),
        ({"validation_fraction": 1.0}, "--validation_fraction=1.0"),
    ],
)
def test_mistaken_splits_are_one_clear_line(tmp_path, options, expected):
    write_folder(tmp_path, {"cat": 5, "dog": 5})
    stored = open_stored(str(tmp_path))
    with pytest.raises(UserError) as error:
        choose_splits(stored, **options)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def in_memory(**parts):
    """Returns 23 numbers with splits from one of them to another."""
    split = indexed(23)
    splits = {name: split.slice(*part) for name, part in parts.items()}
    return Stored(tuple(map(str, range(23))), splits)


@pytest.mark.parametrize("names", [EVALUATION_SPLITS, EVALUATION_SPLITS[::-1]])
def test_split_to_evaluate_on_is_the_first_that_exists(names):
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


def test_parts_of_several_splits_can_be_taken():
    stored = in_memory(train=(0, 10), test=(10, 20), more=(20, 23))
    data = choose_splits(stored, "train[:2]+more", "test[-3:]+train[9:]")
    assert data.train.indices.tolist() == [0, 1, 20, 21, 22]
    assert data.evaluation.indices.tolist() == [17, 18, 19, 9]


def test_what_is_held_out_does_not_need_labels(tmp_path):
    split = records(23, tmp_path)
    stored = Stored(("a", "b"), {"train": split})
    data = choose_splits(stored, validation_fraction=0.2)
    assert data.train.indices.tolist() == [*range(18)]
    assert data.evaluation.indices.tolist() == [*range(18, 23)]
    # At least one for each.
    for fraction, kept in ((0.001, 22), (0.999, 1)):
        data = choose_splits(stored, validation_fraction=fraction)
        assert data.train.num_examples == kept
        assert data.evaluation.num_examples == 23 - kept


def test_nothing_is_held_out_where_that_is_wanted(tmp_path):
    data = choose_splits(in_memory(train=(0, 10)), validation_fraction=0)
    assert data.train.num_examples == 10
    assert data.evaluation is None
    assert [*data.splits] == [*data.contents["splits"]] == ["train"]
    assert "nothing is evaluated on" in data.note
    mapped = data.map(lambda name, split: split.slice(0, 3))
    assert (mapped.train.num_examples, mapped.evaluation) == (3, None)
    # A split that is there for it is evaluated on all the same.
    stored = in_memory(train=(0, 10), test=(10, 12))
    data = choose_splits(stored, validation_fraction=0)
    assert data.evaluation.num_examples == 2


def test_class_that_cannot_be_on_both_sides_is_named(tmp_path):
    write_folder(tmp_path, {"cat": 9, "dog": 1, "emu": 1})
    with pytest.raises(UserError) as error:
        choose_splits(open_stored(str(tmp_path)))
    [line] = str(error.value).splitlines()
    for name in ("dog", "emu"):
        assert str(tmp_path / name / "0.jpeg") in line
    assert "cat" not in line
    write_folder(tmp_path, {"dog/more": 1, "emu/more": 1})
    with pytest.raises(UserError) as error:
        choose_splits(open_stored(str(tmp_path)), validation_fraction=0.1)
    [line] = str(error.value).splitlines()
    assert "leaves 11 to train on and 2 to evaluate on, and there are 3" in line
    for text in ("member", "y has", "test_size"):
        assert text not in line


def test_contents_tell_other_examples_in_json():
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


def test_both_splits_are_mapped_by_their_names():
    data = choose_splits(in_memory(train=(0, 10), test=(10, 20)))
    halves = {"train": 5, "eval": 2}
    mapped = data.map(lambda name, split: split.slice(0, halves[name]))
    sizes = [split.num_examples for split in mapped.splits.values()]
    assert [*mapped.splits] == ["train", "eval"]
    assert sizes == [5, 2]
    np.testing.assert_array_equal(mapped.evaluation.indices, [10, 11])


def test_classes_of_one_name_are_rejected_for_new_runs():
    stored = in_memory(train=(0, 10), test=(10, 20))
    names = ["cat" if number in (3, 7) else str(number) for number in range(23)]
    data = choose_splits(stored._replace(class_names=tuple(names)))
    with pytest.raises(UserError) as error:
        check_new(data, "signs.h5")
    assert str(error.value).startswith(
        "--dataset=signs.h5: names of classes must be unique, and 'cat' is "
        "that of classes 3 and 7."
    )
    check_new(choose_splits(stored), "signs.h5")


def test_classes_in_several_spellings_are_reported():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    names = ["Cat", "cat", "dog", composed, decomposed, "a b", "a  b ", "CAFE"]
    case, form, spaces = spelling_warnings(names)
    assert case.startswith("classes 'Cat' and 'cat' differ in case only")
    assert form.startswith(
        "classes 'caf\\xe9' and 'cafe\\u0301' differ in Unicode form only"
    )
    assert spaces.startswith("classes 'a b' and 'a  b ' differ in spaces only")
    assert spelling_warnings(["cat", "dog", "cats"]) == []
    letters = [chr(code) for code in (*range(65, 91), *range(97, 123))]
    assert spelling_warnings(letters)[-1] == (
        "21 other names have several spellings"
    )
