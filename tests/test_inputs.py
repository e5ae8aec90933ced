"""Runs on other people's pictures: folders, HDF5, broken files."""

import json
import pathlib
import re
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from absl.testing import flagsaver
from samples import encoded, read_checkpoint, write_folder, write_hand_signs

from train_loop import datasets, inputs, main, pipeline, settings

COUNTS = {"train/cat": 9, "train/dog": 9, "test/cat": 3, "test/dog": 3}
SMALL = (
    "--model=resnet_tiny",
    "--image_size=16",
    "--batch_size=6",
    "--strategy=one_device",
    "--report_every=1",
)


def run(*arguments, capsys):
    """Runs in this process; returns the exit status and what was printed."""
    with flagsaver.flagsaver():
        settings.FLAGS.unparse_flags()
        status = main.main(settings.parse(["main", *map(str, arguments)]))
    return status, capsys.readouterr()


def read_metrics(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "pictures", COUNTS)
    return tmp_path / "pictures"


@pytest.fixture
def workdir(tmp_path):
    return tmp_path / "run"


def huge_png():
    """Returns the header of a picture of 30,000 x 30,000, and little more."""

    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [
            chunk(b"IHDR", header),
            chunk(b"IDAT", zlib.compress(b"\0")),
            chunk(b"IEND", b""),
        ]
    )


def broken_files():
    """Returns {name: (bytes, what is said about them)}."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), "uint8")
    jpeg, png = encoded(pixels, "jpeg"), encoded(pixels, "png")
    huge_jpeg = bytearray(jpeg)
    sides = jpeg.index(b"\xff\xc0") + 5
    huge_jpeg[sides : sides + 4] = struct.pack(">HH", 30_000, 30_000)
    return {
        "truncated.jpg": (jpeg[:-500], "Invalid JPEG data"),
        "truncated.png": (png[:-500], "Invalid PNG data"),
        "corrupt.jpg": (jpeg[:4] + jpeg[40:], "JPEG"),
        "text.jpg": (b"not a picture at all", "Unknown image file format"),
        "huge.png": (huge_png(), "more than 178,956,970 pixels"),
        "huge.jpg": (bytes(huge_jpeg), "more than 178,956,970 pixels"),
        "empty.jpg": (b"", "is empty"),
        "short.png": (b"\x89PNG", "not that of a picture"),
    }


def test_folder_is_trained_on(folder, workdir, capsys):
    status, printed = run(
        f"--dataset={folder}",
        f"--workdir={workdir}",
        "--epochs=4",
        *SMALL,
        capsys=capsys,
    )
    assert status == 0
    assert "18 pictures to train on, 6 to evaluate on, 2 classes" in printed.out
    records = read_metrics(workdir)
    assert records[-1]["step"] == 12
    assert all(0 <= r["input_wait"] <= 1 for r in records if "input_wait" in r)
    # The other forms of the same name stand for the same run.
    status, printed = run(f"--workdir={workdir}", "--epochs=5", capsys=capsys)
    assert status == 0
    assert read_metrics(workdir)[-1]["step"] == 15


def test_hand_signs_are_trained_on(tmp_path, workdir, capsys):
    write_hand_signs(tmp_path)
    for arguments in (("--steps=2",), ("--steps=4", "--mode=evaluate")):
        status, printed = run(
            f"--dataset={tmp_path / 'train_signs.h5'}",
            f"--workdir={workdir}",
            *arguments,
            *SMALL,
            capsys=capsys,
        )
        assert status == 0, printed.err
    report = json.loads((workdir / "report/report.json").read_text())
    assert report["examples"] == 6


@pytest.mark.parametrize(
    ("name", "cache"),
    [
        *((name, "none") for name in broken_files()),
        ("text.jpg", "memory"),
        ("text.jpg", "disk"),
    ],
)
def test_broken_picture_ends_training_with_its_name(
    folder, workdir, name, cache, capsys
):
    content, reason = broken_files()[name]
    broken = folder / "train/cat" / name
    broken.write_bytes(content)
    status, printed = run(
        f"--dataset={folder}",
        f"--workdir={workdir}",
        "--steps=20",
        f"--cache={cache}",
        *SMALL,
        capsys=capsys,
    )
    assert status == 1
    *_, line = printed.err.splitlines()
    assert line.startswith("error: "), printed.err[-800:]
    assert str(broken) in line
    assert reason in line
    assert "--skip_bad_images" in line


def test_broken_pictures_are_left_out_counted_and_named(
    folder, workdir, capsys
):
    for number, (name, (content, _)) in enumerate(broken_files().items()):
        part = ("train/cat", "train/dog", "test/dog")[number % 3]
        (folder / part / name).write_bytes(content)
    arguments = (f"--workdir={workdir}", "--epochs=2")
    status, printed = run(
        f"--dataset={folder}",
        "--skip_bad_images",
        *arguments,
        *SMALL,
        capsys=capsys,
    )
    assert status == 0, printed.err
    assert "18 pictures to train on, 6 to evaluate on" in printed.out
    assert "Leaving out 8 broken pictures of 32" in printed.out
    _, *lines = (workdir / "bad_images.jsonl").read_text().splitlines()
    named = {
        pathlib.Path(record["name"]).name: record["reason"]
        for record in map(json.loads, lines)
    }
    for name, (_, reason) in broken_files().items():
        assert reason in named.pop(name)
    assert not named
    # They are looked for once.
    before = (workdir / "bad_images.jsonl").stat().st_mtime_ns
    status, printed = run(*arguments, "--epochs=3", capsys=capsys)
    assert status == 0
    assert "Leaving out 8" in printed.out
    assert (workdir / "bad_images.jsonl").stat().st_mtime_ns == before


def test_picture_that_breaks_later_costs_no_work(folder, workdir, capsys):
    """As a disk does that goes bad in the middle of a run."""
    arguments = (
        f"--dataset={folder}",
        f"--workdir={workdir}",
        "--checkpoint_every=1000",
        "--cache=none",
        *SMALL,
    )
    reads = []
    real = tf.io.read_file

    def read_file(path):
        def fail_late():
            reads.append(1)
            if len(reads) > 120:
                (folder / "train/dog/3.jpeg").write_bytes(b"gone bad")

        tf.py_function(fail_late, [], [])
        return real(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train_loop.datasets.tf.io.read_file", read_file)
        status, printed = run(*arguments, "--steps=40", capsys=capsys)
    assert status == 1
    *_, line = printed.err.splitlines()
    assert str(folder / "train/dog/3.jpeg") in line
    [saved] = (workdir / "checkpoints").glob("*.index")
    step = int(re.findall(r"\d+", saved.name)[0])
    # How many are read ahead differs from one machine to the next.
    assert step >= 1
    # What was learned up to there is not lost.
    status, printed = run(
        *arguments, "--steps=40", "--skip_bad_images", capsys=capsys
    )
    assert status == 0, printed.err
    assert f"from step {step}" in printed.out
    assert "17 pictures to train on" in printed.out


@pytest.mark.parametrize("position", [25, 39])
def test_what_is_saved_before_a_broken_picture_is_what_was_learned(
    tmp_path, position, capsys
):
    folder, workdir = tmp_path / "pictures", tmp_path / "run"
    write_folder(folder, {"train/a": 30, "train/b": 30, "test/a": 1})
    arguments = (
        f"--dataset={folder}",
        "--cache=none",
        "--augment=",
        "--steps=25",
        *SMALL,
        "--image_size=8",
        "--batch_size=2",
        # Several steps in one call, of which one has no batch.
        "--report_every=100",
        "--checkpoint_every=100",
    )
    alone = tmp_path / "alone"
    run(*arguments, f"--workdir={alone}", capsys=capsys)
    split = datasets.open_stored(str(folder)).splits["train"]
    [example] = pipeline.shuffled_examples(split, 0, position).take(1)
    broken = pathlib.Path(split.name(int(example["index"])))
    content = broken.read_bytes()
    broken.write_bytes(b"gone bad")
    status, printed = run(*arguments, f"--workdir={workdir}", capsys=capsys)
    assert status == 1
    assert str(broken) in printed.err.splitlines()[-1]
    assert (workdir / f"checkpoints/ckpt-{position // 2}.index").is_file()
    # Mended, it ends as if nothing had been.
    broken.write_bytes(content)
    status, printed = run(f"--workdir={workdir}", capsys=capsys)
    assert status == 0
    assert f"from step {position // 2}" in printed.out
    expected, values = read_checkpoint(alone, 25), read_checkpoint(workdir, 25)
    for key, value in expected.items():
        np.testing.assert_array_equal(values[key], value, err_msg=key)


def test_broken_evaluation_picture_is_named(folder, workdir, capsys):
    (folder / "test/cat/9.jpg").write_bytes(b"not a picture")
    status, printed = run(
        f"--dataset={folder}",
        f"--workdir={workdir}",
        "--steps=2",
        "--cache=none",
        *SMALL,
        capsys=capsys,
    )
    assert status == 1
    assert str(folder / "test/cat/9.jpg") in printed.err.splitlines()[-1]
    # And what was learned is kept.
    assert (workdir / "checkpoints/ckpt-2.index").is_file()


def test_broken_record_file_is_named(tmp_path, workdir, capsys):
    class Records(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(16, 16, 3)),
                    "label": tfds.features.ClassLabel(num_classes=2),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(),
                "test": self._generate_examples(),
            }

        def _generate_examples(self):
            random = np.random.default_rng(0)
            for n in range(12):
                image = random.integers(0, 255, (16, 16, 3)).astype("uint8")
                yield n, {"image": image, "label": n % 2}

    builder = Records(data_dir=tmp_path)
    builder.download_and_prepare()
    [file] = builder.info.splits["train"].filepaths
    content = bytearray(pathlib.Path(file).read_bytes())
    content[len(content) // 2] ^= 255
    pathlib.Path(file).write_bytes(content)
    for cache in ("none", "memory"):
        status, printed = run(
            "--dataset=records",
            f"--data_dir={tmp_path}",
            f"--workdir={workdir}-{cache}",
            "--steps=4",
            f"--cache={cache}",
            *SMALL,
            capsys=capsys,
        )
        assert status == 1
        *_, line = printed.err.splitlines()
        assert f"{file} is damaged" in line


def test_data_mode_counts_and_draws(folder, workdir, capsys):
    arguments = ("--mode=data", f"--dataset={folder}", f"--workdir={workdir}")
    options = ("--augment=random_resized_crop,mixup", "--image_size=16")
    status, printed = run(*arguments, *options, capsys=capsys)
    assert status == 0, printed.err
    assert re.search(r"cat +9 +3\n", printed.out)
    picture = tf.io.decode_png((workdir / "pictures.png").read_bytes())
    assert min(picture.shape[:2]) > 500
    (folder / "train/cat/text.jpg").write_bytes(b"not a picture")
    (folder / "train/owl").mkdir()
    status, printed = run(*arguments, *options, capsys=capsys)
    assert status == 1
    assert "owl holds no pictures" in printed.out
    assert "warning: train: owl has 0 pictures" in printed.out
    assert f"broken: {folder / 'train/cat/text.jpg'}" in printed.out
    assert "1 pictures cannot be decoded" in printed.err


@pytest.fixture
def drawn(monkeypatch):
    """Returns the titles of what is drawn from now on, with their labels."""
    titles = {}
    write = main.figures.write_pictures

    def spy(path, groups):
        titles.update({title: labels for title, (_, labels) in groups.items()})
        write(path, groups)

    monkeypatch.setattr(main.figures, "write_pictures", spy)
    return titles


@pytest.mark.parametrize("skip", [False, True])
def test_data_mode_names_broken_pictures_and_draws_the_others(
    folder, workdir, drawn, skip, capsys
):
    for number, (name, (content, _)) in enumerate(broken_files().items()):
        part = ("train/cat", "train/dog", "test/dog")[number % 3]
        (folder / part / name).write_bytes(content)
    status, printed = run(
        "--mode=data",
        f"--dataset={folder}",
        f"--workdir={workdir}",
        f"--skip_bad_images={skip}",
        *SMALL,
        capsys=capsys,
    )
    named = dict(re.findall(r"broken: .*/(.*?): (.*)\n", printed.out))
    assert sorted(named) == sorted(broken_files())
    for name, (_, reason) in broken_files().items():
        assert reason in named[name]
    assert len(drawn["Training"]) == 16
    assert sorted(drawn["Evaluation"]) == 3 * ["cat"] + 3 * ["dog"]
    assert (workdir / "pictures.png").is_file()
    if skip:
        assert (status, printed.err) == (0, "")
        assert "Leaving out 8 broken pictures of 32.\n" in printed.out
        # What is counted is what is left.
        assert re.search(r"dog +9 +3\n", printed.out)
    else:
        assert status == 1
        [line] = printed.err.splitlines()
        assert line.startswith("error: 8 pictures cannot be decoded")
        assert "--skip_bad_images" in line
        # All but the empty file, which is no picture.
        assert re.search(r"cat +11 +3\ndog +12 +5\n", printed.out)


@pytest.mark.parametrize(
    ("skip", "expected"),
    [
        (False, "error: 6 pictures cannot be decoded"),
        # A run says the same.
        (True, "error: no picture for eval can be decoded"),
    ],
)
def test_data_mode_draws_nothing_of_a_split_that_is_all_broken(
    folder, workdir, drawn, skip, expected, capsys
):
    arguments = (
        "--mode=data",
        f"--dataset={folder}",
        f"--workdir={workdir}",
        f"--skip_bad_images={skip}",
        *SMALL,
    )
    for path in folder.glob("test/*/*"):
        path.write_bytes(b"not a picture")
    status, printed = run(*arguments, capsys=capsys)
    assert status == 1
    [line] = printed.err.splitlines()
    assert line.startswith(expected)
    assert list(drawn) == ["Training"]
    if skip:
        status, printed = run(
            *arguments, "--mode=train", "--steps=1", capsys=capsys
        )
        assert (status, printed.err.splitlines()) == (1, [line])
    # And nothing at all where there is nothing at all.
    drawn.clear()
    for path in folder.glob("train/*/*"):
        path.write_bytes(b"not a picture")
    status, printed = run(*arguments, capsys=capsys)
    assert status == 1
    assert len(printed.err.splitlines()) == 1
    assert printed.out.count("broken: ") == 24
    assert not drawn


def test_data_mode_names_what_cannot_be_printed(
    folder, workdir, monkeypatch, capsys
):
    # Not every system lets such a file be written.
    stored = datasets.open_stored(str(folder))._replace(
        refused={"\udcff.jpg": "has a name that is not UTF-8"}
    )
    monkeypatch.setattr(datasets, "open_stored", lambda *_, **__: stored)
    status, printed = run(
        "--mode=data",
        f"--dataset={folder}",
        f"--workdir={workdir}",
        *SMALL,
        capsys=capsys,
    )
    assert status == 1
    assert r"broken: \udcff.jpg: has a name" in printed.out


def test_existing_run_keeps_its_data(folder, workdir, capsys):
    common = (f"--workdir={workdir}", "--steps=1")
    run(f"--dataset={folder}", *common, *SMALL, capsys=capsys)
    for change in (
        "--dataset=digits",
        "--train_split=train[:50%]",
        "--eval_split=train",
        "--validation_fraction=0.5",
        "--cache=disk",
    ):
        status, printed = run(*common, change, capsys=capsys)
        assert status == 1
        assert change in printed.err


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--crop_scale=0.5", "two positive numbers"),
        ("--crop_scale=0.5,1.5", "up to 1"),
        ("--crop_ratio=2,1", "the smaller one first"),
        ("--crop_ratio=a,b", "such as 0.75,1.333"),
        ("--augment=mixpu", "did you mean mixup"),
        ("--interpolation=cubic", "did you mean bicubic"),
        ("--cache=ram", "auto, none, memory, disk"),
        ("--data_service=grpc://localhost:1", "cannot be reached"),
        ("--data_service=localhost:5050", "must begin with grpc://"),
        ("--train_split=tarin", "--train_split=tarin cannot be read"),
    ],
)
def test_mistaken_flags_are_one_clear_line(flag, expected, workdir, capsys):
    status, printed = run(flag, f"--workdir={workdir}", capsys=capsys)
    assert status == 1
    [line] = printed.err.splitlines()
    assert flag in line
    assert expected in line


def test_augmentation_flags_reach_their_functions(monkeypatch):
    seen = {}

    def spy(name):
        def function(image, seed, **options):
            seen[name] = options
            return image

        return function

    names = ("color_jitter", "rand_augment", "random_erasing")
    for name in names:
        monkeypatch.setitem(inputs.augment.AUGMENTATIONS, name, spy(name))
    crop = inputs.preprocessing.random_resized_crop

    def crop_spy(encoded, image_size, seed, **options):
        seen["crop"] = options
        return crop(encoded, image_size, seed, **options)

    monkeypatch.setitem(
        inputs.preprocessing.TRAINING_CROPS, "random_resized_crop", crop_spy
    )
    with flagsaver.flagsaver():
        settings.FLAGS.unparse_flags()
        settings.parse(
            [
                "main",
                f"--augment=random_resized_crop,{','.join(names)}",
                "--color_jitter_strength=0.1",
                "--rand_augment_layers=3",
                "--rand_augment_magnitude=4",
                "--erasing_probability=0.6",
                "--crop_scale=0.3,0.5",
                "--crop_ratio=0.9,1.1",
                "--interpolation=bicubic",
            ]
        )
        settings.settle(None)
        pixels = np.zeros((20, 20, 3), "uint8")
        inputs.prepare_for_training(encoded(pixels, "png"), [1, 2])
    assert seen == {
        "color_jitter": {"strength": 0.1},
        "rand_augment": {"num_layers": 3, "magnitude": 4},
        "random_erasing": {"probability": 0.6},
        "crop": {
            "scale": (0.3, 0.5),
            "ratio": (0.9, 1.1),
            "interpolation": "bicubic",
        },
    }


def test_other_pictures_are_not_taken_for_those_that_were_kept(
    folder, workdir, capsys
):
    """Under the same names, in a cache, as embeddings, as broken ones."""
    arguments = (
        f"--dataset={folder}",
        f"--workdir={workdir}",
        "--freeze=backbone",
        "--cache=disk",
        "--skip_bad_images",
        *SMALL,
    )
    status, printed = run(*arguments, "--steps=2", capsys=capsys)
    assert status == 0, printed.err
    kept = {path.name for path in workdir.glob("*/*")}
    kept |= {path.name for path in workdir.glob("cache/*/*")}
    for number in range(3):
        pixels = np.full((30, 30, 3), 9 + number, "uint8")
        path = folder / f"train/cat/{number}.jpeg"
        path.write_bytes(encoded(pixels, "jpeg"))
    (folder / "train/dog/0.jpeg").write_bytes(b"gone bad")
    status, printed = run(*arguments, "--steps=4", capsys=capsys)
    assert status == 0, printed.err
    assert "Leaving out 1 broken pictures" in printed.out
    assert {p.name for p in workdir.glob("cache/train/*")} - kept
    [embeddings] = {p.name for p in workdir.glob("embeddings/train-*")} - kept
    assert (
        len(np.load(workdir / "embeddings" / embeddings / "labels.npy")) == 17
    )
    # Half a line, as a kill might have left it.
    (workdir / "bad_images.jsonl").write_text('{"search')
    status, printed = run(*arguments, "--steps=6", capsys=capsys)
    assert status == 0, printed.err
    assert "Leaving out 1 broken pictures" in printed.out


def test_run_refuses_pictures_that_it_did_not_begin_with(tmp_path, capsys):
    """It would hold out some that it was trained on."""
    write_folder(tmp_path / "pictures", {"cat": 10, "dog": 10})
    arguments = (f"--workdir={tmp_path / 'run'}", "--steps=1")
    status, _ = run(
        f"--dataset={tmp_path / 'pictures'}", *arguments, *SMALL, capsys=capsys
    )
    assert status == 0
    status, _ = run(*arguments, "--steps=2", capsys=capsys)
    assert status == 0
    pixels = np.zeros((9, 9, 3), "uint8")
    path = tmp_path / "pictures/cat/new.png"
    path.write_bytes(encoded(pixels, "png"))
    status, printed = run(*arguments, "--steps=3", capsys=capsys)
    assert status == 1
    assert "are not those that" in printed.err
    path.unlink()
    status, _ = run(*arguments, "--steps=3", capsys=capsys)
    assert status == 0


def test_pictures_in_both_splits_are_said(folder, workdir, capsys):
    _, printed = run(
        f"--dataset={folder}",
        f"--workdir={workdir}",
        "--eval_split=train[:50%]",
        "--steps=1",
        *SMALL,
        capsys=capsys,
    )
    assert "warning: 9 pictures are in both splits" in printed.out


def test_pictures_that_are_twice_in_a_split_are_said(folder, workdir, capsys):
    _, printed = run(
        "--mode=data",
        f"--dataset={folder}",
        f"--workdir={workdir}",
        "--train_split=train[:50%]+train[5:12]",
        *SMALL,
        capsys=capsys,
    )
    assert (
        "warning: 4 pictures are in --train_split=train[:50%]+train[5:12] more "
        "than once\n"
    ) in printed.out
    assert "16 pictures for train" in printed.out


def test_same_command_goes_on(folder, workdir, capsys):
    arguments = (f"--dataset={folder}", f"--workdir={workdir}", "--cache=auto")
    for _ in range(2):
        status, printed = run(*arguments, "--steps=1", *SMALL, capsys=capsys)
        assert status == 0, printed.err
