"""Tables of images and their labels."""

import pytest
from samples import read_all, write_folder

from train_loop.data.sources import open_stored
from train_loop.data.stored import choose_splits
from train_loop.errors import UserError


@pytest.fixture
def root(tmp_path):
    """Returns a folder with images that no folder of which tells a class."""
    write_folder(tmp_path / "table", {"photos/1": 8, "photos/2": 7})
    return tmp_path / "table"


def write_table(root, text):
    path = root / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def lines(root, label="{}"):
    return "".join(
        f"{path.relative_to(root)},{label.format(path.stem)}\n"
        for path in sorted(root.rglob("*.jpeg"))
    )


@pytest.mark.parametrize("head", ["image,label", "\ufeffimage, label"])
def test_images_of_a_table_are_read_with_their_labels(root, head):
    table = write_table(root, f"{head}\n{lines(root)}\n\n")
    stored = open_stored(table)
    assert stored.class_names == tuple("01234567")
    examples = dict(read_all(stored.splits["train"]))
    assert len(examples) == stored.splits["train"].num_examples == 15
    for content, label in examples.items():
        names = {str(label)}
        assert content in {
            path.read_bytes()
            for name in names
            for path in root.rglob(f"{name}.jpeg")
        }


def test_columns_may_stand_in_any_order_and_names_be_quoted(root):
    rows = [
        '"cat, grey",photos/1/0.jpeg\n',
        "dog,photos/2/1.jpeg\n",
        "dog,../table/photos/2/2.jpeg\n",
        f"dog,{root}/photos/2/3.jpeg\n",
    ]
    table = write_table(root, "label,image\n" + "".join(rows))
    stored = open_stored(table)
    assert stored.class_names == ("cat, grey", "dog")
    labels = [label for _, label in read_all(stored.splits["train"])]
    assert sorted(labels) == [0, 1, 1, 1]


def test_table_may_be_moved_with_its_images(root, tmp_path):
    text = "image,label\n" + lines(root).replace(",7", ",6")
    contents = choose_splits(
        open_stored(write_table(root, text)), "train[:50%]", "train[50%:]"
    ).contents
    root.rename(tmp_path / "moved")
    moved = open_stored(str(tmp_path / "moved/labels.csv"))
    again = choose_splits(moved, "train[:50%]", "train[50%:]").contents
    assert again == contents


def test_image_of_a_table_that_is_not_there_is_refused_by_name(root):
    gone = "image,label\nphotos/1/0.jpeg,a\nphotos/1/1.jpeg,b\nno.jpg,b\n"
    stored = open_stored(write_table(root, gone))
    [(name, reason)] = stored.refused.items()
    assert name == str(root / "no.jpg")
    assert "No such file" in reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image,cat,dog\na.jpg,0,1\n", "has the columns image, cat, dog; it"),
        ("image,label,label\na.jpg,x,y\n", "has the columns image, label, l"),
        ("image;label\na.jpg;x\n", "has the columns image;label; it takes"),
        ("", "has the columns of no table; it takes image and label"),
        ("image,label\na.jpg,x\na.jpg,y\n", "line 3 of .* has a.jpg again"),
        ("image,label\na.jpg\n", "line 2 of .* is no image with a label"),
        ("image,label\na.jpg,\n", "line 2 of .* is no image with a label"),
        ("image,label\na.jpg,x,y\n", "line 2 of .* is no image with a label"),
        ("image,label\n", "lists no image; it takes a line for each"),
        ('image,label\n"a.jpg,x\n', "cannot be read as a table"),
        ("image,label\na.jpg,x\nb.jpg,y\n", "holds no image to train on"),
    ],
)
def test_tables_of_another_kind_are_one_clear_line(root, text, expected):
    with pytest.raises(UserError, match=expected) as error:
        open_stored(write_table(root, text))
    assert "\n" not in str(error.value)


def test_table_that_is_no_text_is_one_clear_line(root):
    for content in (b"\xff\xfe\x00", b"\x89PNG\r\n"):
        (root / "labels.csv").write_bytes(content)
        with pytest.raises(UserError, match="labels.csv"):
            open_stored(str(root / "labels.csv"))
    with pytest.raises(UserError, match="none.csv"):
        open_stored(str(root / "none.csv"))
