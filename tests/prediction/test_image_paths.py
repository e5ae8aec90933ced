"""The image paths of `--images`."""

import os

import pytest

from train_loop.errors import UserError
from train_loop.prediction.predict_files import find_images, split_names


@pytest.fixture(autouse=True)
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (
        "photos/b.jpg",
        "photos/a.PNG",
        "photos/notes.txt",
        "photos/._a.PNG",
        "photos/sub/c.webp",
        "other/x,y.jpg",
        "other/[1].jpg",
        "empty/notes.txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("photos/b.jpg", ["photos/b.jpg"]),
        # A folder: its images, including subfolders.
        ("photos", ["photos/a.PNG", "photos/b.jpg", "photos/sub/c.webp"]),
        # A glob: all matching files.
        ("photos/*", ["photos/a.PNG", "photos/b.jpg", "photos/notes.txt"]),
        ("photos/**/*.webp", ["photos/sub/c.webp"]),
        ("phot*", ["photos/a.PNG", "photos/b.jpg", "photos/sub/c.webp"]),
        # In the order of the text.
        ("photos/sub,photos/b.jpg", ["photos/sub/c.webp", "photos/b.jpg"]),
        # Commas and brackets can be part of a name.
        ("other/x,y.jpg", ["other/x,y.jpg"]),
        ("photos/b.jpg,other/x,y.jpg", ["photos/b.jpg", "other/x,y.jpg"]),
        ("other/x,*,photos/sub", ["other/x,y.jpg", "photos/sub/c.webp"]),
        ("other/[1].jpg", ["other/[1].jpg"]),
        # A missing file is kept and gets an error later.
        ("nowhere.jpg,photos/b.jpg", ["nowhere.jpg", "photos/b.jpg"]),
    ],
)
def test_text_is_expanded_to_paths(text, expected):
    assert find_images(text, ()) == expected


def test_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_images("~/photos/b*", ()) == [str(tmp_path / "photos/b.jpg")]


def test_list_contains_files_and_folders_but_no_globs():
    lines = [
        b"photos/b.jpg\n",
        b"\n",
        b"other/x,y.jpg\r\n",
        b"no[*].jpg\n",
        b"photos/sub\n",
        b"caf\xe9.jpg",
    ]
    assert find_images("-", lines) == [
        "photos/b.jpg",
        "other/x,y.jpg",
        "no[*].jpg",
        "photos/sub/c.webp",
        os.fsdecode(b"caf\xe9.jpg"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("photos/*.gif", "--images=photos/*.gif: no matching file."),
        ("photos/b.jpg,*.gif", "--images=*.gif: no matching file."),
        ("empty", "--images=empty: no images found. Pass a folder with files"),
        ("", "--images=: contains no paths. Pass files, folders and globs"),
        ("-", "--images=-: contains no paths."),
    ],
)
def test_no_images_is_an_error(text, expected):
    with pytest.raises(UserError) as error:
        find_images(text, ())
    [line] = str(error.value).splitlines()
    assert line.startswith(expected)


def test_longest_existing_names_win(tmp_path):
    for name in ("a", "a,b", "b,c"):
        (tmp_path / name).touch()
    assert split_names("a,b,c") == ["a,b", "c"]
    assert split_names("a,c,b,c") == ["a", "c", "b,c"]
    (tmp_path / "a,b,c").touch()
    assert split_names("a,b,c,b,c") == ["a,b,c", "b,c"]


@pytest.mark.parametrize("name", ["a[1]", "[b]", "what?", "*"])
def test_existing_folder_is_not_a_pattern(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (name, "a1", "b", "whatx"):
        for below in ("cat", "c[at]"):
            path = tmp_path / folder / below / "x.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    for folder in (name, tmp_path / name):
        expected = [f"{folder}/c[at]/x.png", f"{folder}/cat/x.png"]
        assert find_images(f"{folder}/*/*.png", ()) == expected
        assert find_images(f"{folder}/*/", ()) == expected
        assert find_images(f"{folder}/c[at]/*.png", ()) == expected[:1]
    # Without an existing folder of this name, it is a pattern.
    assert find_images("[a]1/cat/*", ()) == ["a1/cat/x.png"]


def test_folders_are_followed_and_skipped_as_in_training(tmp_path):
    places = ("a/1.png", "a/.hidden/2.png", "a/__MACOSX/3.png", "b/4.png")
    for name in (*places, "a/run/5.png", "a/run/flags.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "a/run/checkpoints").mkdir()
    (tmp_path / "a/link").symlink_to(tmp_path / "b")
    (tmp_path / "a/round").symlink_to(tmp_path / "a")
    for folder in ("a", "a/"):
        assert find_images(folder, ()) == ["a/1.png", "a/link/4.png"]
