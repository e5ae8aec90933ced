"""Broken images and files, duplicates, and counts of classes."""

import io
import itertools
import json
import os
import pathlib
import resource
import struct
import sys
import zlib

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from samples import (
    ALONE,
    broken_files,
    encoded,
    indexed,
    records,
    together,
    write_folder,
)

from train_loop.data import cache, check
from train_loop.data.datasets import choose_splits, open_dataset
from train_loop.data.folder import open_folder
from train_loop.data.split import Data, MemoryStore, Split
from train_loop.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 255, (40, 40, 3), "uint8")
SIDE = 30_000


def in_memory(files):
    """Returns a split of the bytes of files."""
    labels = np.zeros(len(files), int)
    return Split.of_all(MemoryStore(tf.constant(files), labels))


def changed(content, offset, *numbers, kind):
    """Returns the bytes of a file with other numbers at an offset."""
    content = bytearray(content)
    struct.pack_into(kind, content, offset, *numbers)
    return bytes(content)


def huge_png():
    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [
            chunk(b"IHDR", header),
            chunk(b"IDAT", zlib.compress(b"\0")),
            chunk(b"IEND", b""),
        ]
    )


def huge_jpeg(marker, **options):
    content = encoded(PIXELS, "jpeg", **options)
    offset = content.index(marker) + 5
    return changed(content, offset, SIDE, SIDE, kind=">HH")


def huge_bmp():
    return changed(encoded(PIXELS, "bmp"), 18, SIDE, SIDE, kind="<ii")


def huge_gif():
    return changed(encoded(PIXELS, "gif"), 6, SIDE, SIDE, kind="<HH")


def huge_tiff():
    content = encoded(PIXELS, "tiff")
    for tag in (b"\0\1", b"\1\1"):
        offset = content.index(tag + struct.pack("<HI", 4, 1)) + 8
        content = changed(content, offset, SIDE, kind="<I")
    return content


# Not WebP: its maximum of 16,383 x 16,383 pixels is below the limit.
HUGE = {
    "png": huge_png,
    "jpeg": lambda: huge_jpeg(b"\xff\xc0"),
    "progressive jpeg": lambda: huge_jpeg(b"\xff\xc2", progressive=True),
    "bmp": huge_bmp,
    "gif": huge_gif,
    "tiff": huge_tiff,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HUGE)
def test_huge_images_are_rejected_without_decoding(name):
    """Decoded, they would take 2.7 GB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    split = in_memory([encoded(PIXELS, "png"), HUGE[name]()])
    (first, fine), (second, reason) = check.broken_images(split)
    assert (first, fine, second) == (0, None, 1)
    assert reason
    if sys.platform == "linux":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert (peak - before) * 1024 < 1e9


KINDS = ("jpeg", "png", "bmp", "gif", "webp", "tiff")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_truncated_images_are_broken(kind):
    content = encoded(PIXELS, kind)
    split = in_memory([content[:-300], content, content[:30]])
    reasons = [reason for _, reason in check.broken_images(split)]
    assert [reason is not None for reason in reasons] == [True, False, True]


def test_each_broken_image_has_a_reason_of_one_line():
    files = [encoded(PIXELS, "png"), *broken_files().values()] * 9
    found = list(check.broken_images(in_memory(files)))
    assert [number for number, _ in found] == list(range(len(files)))
    for number, reason in found:
        if number % (len(broken_files()) + 1) == 0:
            assert reason is None
            continue
        # No nodes of graphs, addresses of objects or paths of code.
        assert reason.strip() == reason != ""
        for foreign in ("{{", "[Op:", "\n", " 0x", "site-packages"):
            assert foreign not in reason


@pytest.mark.parametrize(
    "message",
    [
        "{{function_node __wrapped__x}} it is\nbroken [Op:DecodePng]",
        "Graph execution error:\n\nDetected at node x defined at (most recent "
        'call last):\n  File "main.py", line 5\n\nit is\n\t [[{{node x}}]] '
        "[Op:__inference_evaluate_818]",
        "ValueError: it is\nTraceback (most recent call last):\n",
    ],
)
def test_reasons_omit_the_internals_of_tensorflow(message):
    error = tf.errors.InvalidArgumentError(None, None, message)
    assert check.reason_of(error) == "it is"


def test_parts_of_a_split_can_be_checked():
    files = [encoded(PIXELS, "png"), b"broken", encoded(PIXELS, "gif"), b""]
    split = in_memory(files).take([3, 1, 0])
    found = dict(check.broken_images(split))
    assert [*found] == [3, 1, 0]
    assert found[0] is None
    assert None not in (found[1], found[3])
    assert dict(check.broken_images(split, split.stored().take(1))) == {
        3: found[3]
    }


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "images"
    write_folder(root, {f"{s}/{c}": 4 for s in ("train", "test") for c in "ab"})
    for number, (name, content) in enumerate(broken_files().items()):
        part = ("train/a", "train/b", "test/b")[number % 3]
        (root / part / name).write_bytes(content)
    return root


def open_data(root):
    stored = open_folder(root)
    return choose_splits(stored), stored.rejected


@pytest.mark.slow
def test_broken_images_are_found_in_all_splits_and_skipped(root):
    data, rejected = open_data(root)
    broken = check.find_broken(data, rejected)
    names = {pathlib.Path(record["name"]).name for record in broken}
    assert names == {*broken_files()}
    assert len(broken) == len(names)
    for record in broken:
        place = pathlib.Path(record["name"]).relative_to(root).parts[0]
        name = {"train": "train", "test": "eval"}[place]
        assert record["split"] == (
            name if record["reason"][:3] != "is " else None
        )
        assert json.loads(json.dumps(record)) == record
    left = check.without_broken(data, broken)
    assert left.train.num_examples == left.evaluation.num_examples == 8
    assert not check.find_broken(left, {})
    # The contents of a run do not change when an image breaks later.
    assert left.contents == data.contents
    line = check.describe_skipped(left, broken)
    assert line == f"Skipping {len(broken)} broken images of 23"
    check.check_not_empty(left)


@pytest.mark.slow
def test_search_for_broken_images_runs_once(root, tmp_path, monkeypatch):
    path = tmp_path / "run" / "bad_images.jsonl"
    data, rejected = open_data(root)
    found = check.find_broken_once(data, rejected, path, ALONE)
    assert found == check.find_broken(data, rejected)
    with monkeypatch.context() as patch:
        patch.setattr(check, "find_broken", None)
        assert check.find_broken_once(data, rejected, path, ALONE) == found
    # It runs again after a file has changed, or if the list is truncated.
    (root / "train/a/0.jpeg").write_bytes(b"gone bad")
    data, rejected = open_data(root)
    again = check.find_broken_once(data, rejected, path, ALONE)
    assert len(again) == len(found) + 1
    path.write_text('{"searched')
    assert check.find_broken_once(data, rejected, path, ALONE) == again


@pytest.mark.slow
def test_workers_skip_images_that_are_broken_for_one_of_them(tmp_path):
    for disk in "ab":
        counts = {f"{s}/{c}": 2 for s in ("train", "test") for c in "ab"}
        write_folder(tmp_path / disk, counts)
    for broken in ("a/train/b/0.jpeg", "b/test/a/1.jpeg"):
        (tmp_path / broken).write_bytes(b"gone bad")

    def find(workers):
        disk = tmp_path / "ab"[workers.number]
        data, rejected = open_data(disk)
        path = disk.with_suffix(".jsonl")
        found = check.find_broken_once(data, rejected, path, workers)
        assert check.find_broken_once(data, rejected, path, workers) == found
        left = check.without_broken(data, found)
        return [
            [os.path.relpath(split.store.name(n), disk) for n in split.indices]
            for split in left.splits.values()
        ]

    ours, theirs = together(find)
    assert [len(names) for names in ours] == [3, 3]
    assert ours == theirs


def test_split_with_only_broken_images_is_an_error(root):
    for path in root.glob("test/*/*"):
        path.write_bytes(b"not an image")
    data, rejected = open_data(root)
    left = check.without_broken(data, check.find_broken(data, rejected))
    with pytest.raises(UserError, match="no image of the eval split can be"):
        check.check_not_empty(left)


@pytest.mark.slow
@pytest.mark.parametrize("keep", cache.CACHES.values())
def test_errors_report_the_image_that_caused_them(root, tmp_path, keep):
    data, _ = open_data(root)
    split = keep(data.train, tmp_path / "cache", ALONE)
    raised = tf.errors.InvalidArgumentError(None, None, "somewhere")
    error = check.explain(raised, split)
    assert isinstance(error, UserError)
    [line] = str(error).splitlines()
    broken = [
        name
        for name in broken_files()
        if str(root / "train") in line and name in line
    ]
    assert len(broken) == 1
    assert "--skip_bad_images" in line
    with pytest.raises(UserError), check.explained(split):
        raise raised


def test_errors_without_a_broken_image_are_unchanged():
    raised = tf.errors.InternalError(None, None, "something else")
    split = in_memory([encoded(PIXELS, "png")])
    assert check.explain(raised, split) is raised


def test_damaged_record_file_is_reported(tmp_path):
    split = records(23, tmp_path)
    path = pathlib.Path(split.store.files[2])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError) as error, check.explained(split):
        list(split.stored())
    [line] = str(error.value).splitlines()
    assert line.startswith(f"{path}: damaged (")


def test_labels_are_counted_with_and_without_reading(tmp_path):
    expected = {number: 1 for number in range(23) if number not in (3, 9)}
    for split in (indexed(23), records(23, tmp_path)):
        counts = check.count_labels(split.without([3, 9]), "train")
        assert dict(counts) == expected


def test_rare_classes_get_a_warning():
    names = ["cat", "dog", "owl", "ape"]
    counts = {0: 19, 1: 80, 3: 1}
    assert check.balance_warnings(counts, names) == [
        "owl has 0 images; the mean is 25.",
        "ape has 1 images; the mean is 25.",
    ]
    assert check.balance_warnings({0: 5, 1: 25}, names[:2]) == []


def test_many_classes_are_summarized():
    names = [f"c{number}" for number in range(1000)]
    counts = {number: 100 + number for number in range(900)} | {7: 3}
    *first, last = check.balance_warnings(counts, names)
    assert first[0] == "c900 has 0 images; the mean is 494."
    assert len(first) == check.MAX_CLASSES
    assert last == "96 other classes have less than 20% of the mean."
    assert check.describe_counts(counts, names) == (
        "smallest c7 (3), c0 (100), c1 (101), c2 (102), c3 (103); "
        "largest c899 (999), c898 (998), c897 (997), c896 (996), c895 (995); "
        "100 empty: c900, c901, c902, c903, c904 and 95 others"
    )


def test_pillow_and_check_agree_on_what_is_an_image():
    """A transparent palette, a file with trailing bytes, a truncated GIF."""
    file = io.BytesIO()
    PIL.Image.fromarray(PIXELS).convert("P").save(file, "png", transparency=3)
    files = [file.getvalue(), encoded(PIXELS, "jpeg") + b"more", b"GIF89a"]
    reasons = [reason for _, reason in check.broken_images(in_memory(files))]
    assert [reason is None for reason in reasons] == [True, True, False]


# Path -> content. All files with one letter have the same size.
FILES = {
    "train/cat/a.png": b"A",
    "train/cat/b.png": b"A",
    "train/cat/c.png": b"B",
    "train/cat/large.png": b"A" * 9,
    "train/dog/d.png": b"B",
    "train/dog/e.png": b"C",
    "train/dog/f.png": b"D",
    "test/cat/g.png": b"C",
    "test/dog/h.png": b"E",
    "test/dog/larger.png": b"A" * 10,
}
PAIRS = {
    "within a class": {"a.png", "b.png"},
    "between classes": {"c.png", "d.png"},
    "between splits": {"e.png", "g.png"},
}


@pytest.fixture
def data(tmp_path):
    for place, content in FILES.items():
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return choose_splits(open_dataset(str(tmp_path)))


def short(name):
    return name.rpartition("/")[2]


def test_duplicates_are_grouped_by_kind(data):
    found = check.find_duplicates([*data.splits.values()])
    groups = check.group_members(found.groups, data)
    assert {
        check.kind_of_group(group): {short(name) for name, *_ in group}
        for group in groups
    } == PAIRS
    # Files with a unique size were not read.
    assert (found.candidates, found.unchecked) == (8, 0)


def test_training_searches_only_duplicates_between_splits(data):
    found = check.find_duplicates([*data.splits.values()], between=True)
    [group] = check.group_members(found.groups, data)
    assert check.kind_of_group(group) == "between splits"
    [warning] = check.leak_warnings(data, seconds=1e9)
    assert warning.startswith(
        "eval: 1 images are exact duplicates of training images, such as "
    )
    for text in ("e.png (train, dog) = ", "g.png (eval, cat). The metrics"):
        assert text in warning


def test_images_beyond_the_time_limit_are_reported(data):
    ticks = itertools.count()
    lines = check.leak_warnings(data, 4, clock=lambda: next(ticks))
    assert lines[-1] == (
        "eval: 5 of 8 possible duplicates were not compared within 4 s. "
        "Compare all with --mode=data."
    )


def test_unreadable_image_is_not_a_duplicate(data):
    for number in range(data.train.store.num_examples):
        path = data.train.store.name(number)
        if short(path) == "a.png":
            tf.io.gfile.remove(path)
    found = check.find_duplicates([*data.splits.values()])
    assert len(found.groups) == 2
    assert found.unchecked == 0


def test_duplicates_in_other_stores_are_found_by_reading_all(tmp_path):
    store = MemoryStore(tf.constant(list("abcab")), np.array([0, 1, 0, 0, 2]))
    split = Split.of_all(store)
    data = Data(("x", "y", "z"), split.slice(0, 3), split.slice(3, 5), {})
    found = check.find_duplicates([data.train, data.evaluation])
    assert [group.tolist() for group in found.groups] == [[0, 3], [1, 4]]
    assert [
        *map(check.kind_of_group, check.group_members(found.groups, data))
    ] == [
        "between splits",
        "between splits",
    ]
    # A run does not read all records for this warning.
    assert check.leak_warnings(data, 1e9) == []
    # The classes of records are unknown.
    assert check.find_duplicates([records(12, tmp_path)]).groups == []
    one = records(1, tmp_path)
    assert check.find_duplicates([one]).groups == []


def test_description_of_a_group_has_each_split_and_class():
    group = [check.DuplicateImage(f"{n}.png", "train", "cat") for n in range(5)]
    group.append(check.DuplicateImage("6.png", "eval", "cat"))
    assert check.describe_group(group) == (
        "0.png (train, cat) = 6.png (eval, cat) = 1.png (train, cat) and 3 more"
    )
