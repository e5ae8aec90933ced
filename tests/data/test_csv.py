"""CSV files with images and labels."""

import pytest
from samples import read_all, write_folder

from train_loop.data.datasets import check_new, choose_splits, open_dataset
from train_loop.errors import UserError


@pytest.fixture
def root(tmp_path):
    """Returns a folder with images whose subfolders are not classes."""
    write_folder(tmp_path / "table", {"photos/1": 8, "photos/2": 7})
    return tmp_path / "table"


def write_csv(root, text):
    path = root / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def lines(root, label="{}"):
    return "".join(
        f"{path.relative_to(root)},{label.format(path.stem)}\n"
        for path in sorted(root.rglob("*.jpeg"))
    )


@pytest.mark.parametrize("head", ["image,label", "\ufeffimage, label"])
def test_images_and_labels_of_a_csv_file_are_read(root, head):
    table = write_csv(root, f"{head}\n{lines(root)}\n\n")
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


def test_columns_can_be_in_any_order_and_names_quoted(root):
    rows = [
        '"cat, gray",photos/1/0.jpeg\n',
        "dog,photos/2/1.jpeg\n",
        "dog,../table/photos/2/2.jpeg\n",
        f"dog,{root}/photos/2/3.jpeg\n",
    ]
    table = write_csv(root, "label,image\n" + "".join(rows))
    stored = open_dataset(table)
    assert stored.class_names == ("cat, gray", "dog")
    labels = [label for _, label in read_all(stored.splits["train"])]
    assert sorted(labels) == [0, 1, 1, 1]


def test_csv_file_can_be_moved_with_its_images(root, tmp_path):
    text = "image,label\n" + lines(root).replace(",7", ",6")
    contents = choose_splits(
        open_dataset(write_csv(root, text)), "train[:50%]", "train[50%:]"
    ).contents
    root.rename(tmp_path / "moved")
    moved = open_dataset(str(tmp_path / "moved/labels.csv"))
    again = choose_splits(moved, "train[:50%]", "train[50%:]").contents
    assert again == contents


def test_missing_image_of_a_csv_file_is_rejected(root):
    text = "image,label\nphotos/1/0.jpeg,a\nphotos/1/1.jpeg,b\nno.jpg,b\n"
    stored = open_dataset(write_csv(root, text))
    [(name, reason)] = stored.rejected.items()
    assert name == str(root / "no.jpg")
    assert "No such file" in reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image,cat,dog\na.jpg,0,1\n", "split column, not image, cat, dog. "),
        ("image,label,label\na.jpg,x,y\n", "column, not image, label, label"),
        ("image|label\na.jpg|x\n", r"split column, not image\|label. Name"),
        ("path,file,label\na,b,x\n", "split column, not path, file, label. "),
        ("image,label,split,split\n", "column, not image, label, split, split"),
        (
            "image,label,split\na.jpg,x,dev\n",
            "line 2 has the unknown split 'dev'. Use one of train",
        ),
        ("image,label,split\na.jpg,x,\n", "line 2 has the unknown split ''."),
        ("", "must have one image column, one label .*, not none. Name"),
        ("\n\n", "must have one image column, one label .*, not none. Name"),
        ("image,label\n\n\n\na.jpg,\n", "line 5 must have an image and a"),
        ('image,label\n"a\nb",x\nc\n', "line 4 must have an image and a"),
        # Python 3.10 rejects the character, later ones read it.
        (
            "image,label\na\0,x\n",
            "line 2 must have an image and a label|line contains NUL",
        ),
        ("image,label\na.jpg\n", "line 2 must have an image and a label"),
        ("image,label\na.jpg,\n", "line 2 must have an image and a label"),
        ("image,label\na.jpg,x,y\n", "line 2 must have an image and a label"),
        ("image,label\n", "no images listed. Add a line for each"),
        ('image,label\n"a.jpg,x\n', "not readable as CSV"),
        ("image,label\na.jpg,x\nb.jpg,y\n", "no readable training image"),
    ],
)
def test_invalid_csv_files_are_an_error(root, text, expected):
    (root / "link").symlink_to("photos")
    with pytest.raises(UserError, match=expected) as error:
        open_dataset(write_csv(root, text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1/0,x\n1/0,y\n", "line 3 repeats 1/0.jpeg of line 2"),
        ("1/0,x\n./1/0,y\n", "line 3 repeats ./1/0.jpeg of line 2"),
        ("1/0,x\n\n1/../1//0,x\n", "line 4 repeats .* of line 2"),
        ("link/0,x\n1/0,y\n", "line 3 repeats 1/0.jpeg of line 2"),
        ("\n\n1/0,x\n\n./1/0,y\n", "line 6 repeats .* of line 4"),
    ],
)
def test_repeated_images_are_rejected_for_new_runs(root, text, expected):
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
        # The index of pandas, and the same after reading and writing again.
        ',image,label\n0,photos/1/0.jpeg,"a, b"\n1,photos/2/1.jpeg,c\n',
        "Unnamed: 0;image;label\n0;photos/1/0.jpeg;a, b\n1;photos/2/1.jpeg;c\n",
    ],
)
def test_csv_files_of_other_programs_are_read(root, text):
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


def test_column_can_specify_the_splits(root):
    splits = ["train", "Training", "val", "TEST", "test"]
    rows = [f"photos/1/{n}.jpeg,x,{s}\n" for n, s in enumerate(splits)]
    table = write_csv(root, "image,label,Split\n" + "".join(rows))
    counts = {
        name: split.num_examples
        for name, split in open_dataset(table).splits.items()
    }
    assert counts == {"train": 2, "val": 1, "test": 2}


def test_unicode_line_separators_stay_in_a_label(root):
    labels = [f"a{end}b" for end in "\u2028\x85\x0b\x0c\x1c"]
    rows = [f"photos/1/{n}.jpeg,{name}\n" for n, name in enumerate(labels)]
    table = write_csv(root, "image,label\n" + "".join(rows))
    assert open_dataset(table).class_names == tuple(sorted(labels))


@pytest.mark.parametrize(
    ("name", "action"),
    [("x.npz", "Convert"), ("x.zip", "Unpack"), ("x", "Convert")],
)
def test_file_of_an_unsupported_format_is_an_error(root, name, action):
    (root / name).touch()
    with pytest.raises(UserError, match=rf"{name}: must be a .*\. {action}"):
        open_dataset(str(root / name))
    (root / name).unlink()
    with pytest.raises(UserError, match=f"{name}: not found"):
        open_dataset(str(root / name))


def test_csv_file_that_is_not_text_is_an_error(root):
    for content in (b"\xff\xfe\x00", b"\x89PNG\r\n"):
        (root / "labels.csv").write_bytes(content)
        with pytest.raises(UserError, match="labels.csv"):
            open_dataset(str(root / "labels.csv"))
    with pytest.raises(UserError, match="none.csv"):
        open_dataset(str(root / "none.csv"))
