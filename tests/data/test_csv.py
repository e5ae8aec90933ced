"""Tables of images and their labels."""

import pytest
from samples import read_all, write_folder

from train_loop.data.datasets import check_new, choose_splits, open_dataset
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
    stored = open_dataset(table)
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
    stored = open_dataset(table)
    assert stored.class_names == ("cat, grey", "dog")
    labels = [label for _, label in read_all(stored.splits["train"])]
    assert sorted(labels) == [0, 1, 1, 1]


def test_table_may_be_moved_with_its_images(root, tmp_path):
    text = "image,label\n" + lines(root).replace(",7", ",6")
    contents = choose_splits(
        open_dataset(write_table(root, text)), "train[:50%]", "train[50%:]"
    ).contents
    root.rename(tmp_path / "moved")
    moved = open_dataset(str(tmp_path / "moved/labels.csv"))
    again = choose_splits(moved, "train[:50%]", "train[50%:]").contents
    assert again == contents


def test_image_of_a_table_that_is_not_there_is_refused_by_name(root):
    gone = "image,label\nphotos/1/0.jpeg,a\nphotos/1/1.jpeg,b\nno.jpg,b\n"
    stored = open_dataset(write_table(root, gone))
    [(name, reason)] = stored.rejected.items()
    assert name == str(root / "no.jpg")
    assert "No such file" in reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image,cat,dog\na.jpg,0,1\n", "has the columns image, cat, dog; it"),
        ("image,label,label\na.jpg,x,y\n", "has the columns image, label, l"),
        ("image|label\na.jpg|x\n", r"has the columns image\|label; it takes"),
        ("path,file,label\na,b,x\n", "has the columns path, file, label; it"),
        ("image,label,split,split\n", "has the columns image, label, split"),
        ("image,label,split\na.jpg,x,dev\n", "line 2 of .* has the split dev"),
        (
            "image,label,split\na.jpg,x,\n",
            "has the split of no name; must be one",
        ),
        ("", "has the columns of no table; it takes image and label"),
        ("\n\n", "has the columns of no table; it takes image and label"),
        ("image,label\n\n\n\na.jpg,\n", "line 5 of .* is no image with a"),
        ('image,label\n"a\nb",x\nc\n', "line 4 of .* is no image with a"),
        ("image,label\na\0,x\n", "line 2 of .* is no image with a label"),
        ("image,label\na.jpg\n", "line 2 of .* is no image with a label"),
        ("image,label\na.jpg,\n", "line 2 of .* is no image with a label"),
        ("image,label\na.jpg,x,y\n", "line 2 of .* is no image with a label"),
        ("image,label\n", "lists no image; it takes a line for each"),
        ('image,label\n"a.jpg,x\n', "cannot be read as a table"),
        ("image,label\na.jpg,x\nb.jpg,y\n", "holds no image to train on"),
    ],
)
def test_tables_of_another_kind_are_one_clear_line(root, text, expected):
    (root / "link").symlink_to("photos")
    with pytest.raises(UserError, match=expected) as error:
        open_dataset(write_table(root, text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1/0,x\n1/0,y\n", "line 3 of .* has 1/0.jpeg again, which line 2"),
        ("1/0,x\n./1/0,y\n", "line 3 .* has ./1/0.jpeg again, which line 2"),
        ("1/0,x\n\n1/../1//0,x\n", "line 4 .* again, which line 2"),
        ("link/0,x\n1/0,y\n", "line 3 .* has 1/0.jpeg again, which line 2"),
        ("\n\n1/0,x\n\n./1/0,y\n", "line 6 .* again, which line 4"),
    ],
)
def test_images_that_a_table_has_twice_are_for_no_new_run(root, text, expected):
    (root / "photos/link").symlink_to("1")
    text = "image,label\n" + text.replace(",", ".jpeg,") + "2/1.jpeg,z\n"
    table = root / "photos/labels.csv"
    table.write_text(text)
    stored = open_dataset(str(table))
    data = choose_splits(stored, "train[:50%]", "train[50%:]")
    with pytest.raises(UserError, match=expected):
        check_new(data, str(table))


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        'image;label\nphotos/1/0.jpeg;"a, b"\nphotos/2/1.jpeg;c\n',
        "image\tlabel\nphotos/1/0.jpeg\ta, b\nphotos/2/1.jpeg\tc\n",
        'Image,Label\nphotos/1/0.jpeg,"a, b"\nphotos/2/1.jpeg,c\n',
        'filename,class\nphotos/1/0.jpeg,"a, b"\nphotos/2/1.jpeg,c\n',
        'path,label\nphotos/1/0.jpeg,"a, b"\nphotos/2/1.jpeg,c\n',
        'Class Name;File-Path\n"a, b";photos/1/0.jpeg\nc;photos/2/1.jpeg\n',
        # As pandas writes its index, and what it reads of that again.
        ',image,label\n0,photos/1/0.jpeg,"a, b"\n1,photos/2/1.jpeg,c\n',
        "Unnamed: 0;image;label\n0;photos/1/0.jpeg;a, b\n1;photos/2/1.jpeg;c\n",
    ],
)
def test_tables_of_other_programs_are_read(root, text):
    for newline in ("\n", "\r\n"):
        (root / "labels.csv").write_text(text, newline=newline)
        stored = open_dataset(str(root / "labels.csv"))
        assert stored.class_names == ("a, b", "c")
        expected = [
            ((root / "photos/1/0.jpeg").read_bytes(), 0),
            ((root / "photos/2/1.jpeg").read_bytes(), 1),
        ]
        assert sorted(read_all(stored.splits["train"])) == sorted(expected)
    (root / "labels.csv").rename(root / "labels.tsv")
    assert open_dataset(str(root / "labels.tsv")).class_names == ("a, b", "c")


def test_column_may_tell_the_splits(root):
    splits = ["train", "Training", "val", "TEST", "test"]
    rows = [f"photos/1/{n}.jpeg,x,{s}\n" for n, s in enumerate(splits)]
    table = write_table(root, "image,label,Split\n" + "".join(rows))
    counts = {
        name: split.num_examples
        for name, split in open_dataset(table).splits.items()
    }
    assert counts == {"train": 2, "val": 1, "test": 2}


def test_letters_that_end_lines_elsewhere_stay_in_a_label(root):
    labels = [f"a{end}b" for end in "\u2028\x85\x0b\x0c\x1c"]
    rows = [f"photos/1/{n}.jpeg,{name}\n" for n, name in enumerate(labels)]
    table = write_table(root, "image,label\n" + "".join(rows))
    assert open_dataset(table).class_names == tuple(sorted(labels))


@pytest.mark.parametrize(
    ("name", "way"), [("x.npz", "Convert"), ("x.zip", "Unpack"), ("x", "Conv")]
)
def test_file_of_another_kind_is_there(root, name, way):
    (root / name).touch()
    with pytest.raises(UserError, match=rf"{name}: must be a .*\. {way}"):
        open_dataset(str(root / name))
    (root / name).unlink()
    with pytest.raises(UserError, match=f"{name} is not there"):
        open_dataset(str(root / name))


def test_table_that_is_no_text_is_one_clear_line(root):
    for content in (b"\xff\xfe\x00", b"\x89PNG\r\n"):
        (root / "labels.csv").write_bytes(content)
        with pytest.raises(UserError, match="labels.csv"):
            open_dataset(str(root / "labels.csv"))
    with pytest.raises(UserError, match="none.csv"):
        open_dataset(str(root / "none.csv"))
