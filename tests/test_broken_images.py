"""Runs with images that cannot be decoded."""

import json
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from samples import SMALL_FLAGS, broken_files, read_checkpoint, write_folder

from train_loop.data import batches, datasets

pytestmark = pytest.mark.usefixtures("small_net")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "cache"),
    [
        # A format that Pillow decodes.
        ("text.gif", "none"),
        ("short.png", "memory"),
        ("truncated.jpg", "disk"),
    ],
)
def test_training_stops_with_the_name_of_a_broken_image(
    folder, workdir, name, cache, run
):
    broken = folder / "train/cat" / name
    broken.write_bytes(broken_files()[name])
    status, _, errors = run(
        f"--dataset={folder}",
        f"--workdir={workdir}",
        "--steps=20",
        f"--cache={cache}",
        *SMALL_FLAGS,
    )
    assert status == 1
    *_, line = errors.splitlines()
    assert line.startswith("error: "), errors[-800:]
    assert str(broken) in line
    assert "--skip_bad_images" in line


@pytest.mark.slow
def test_broken_images_are_skipped_counted_and_listed(folder, workdir, run):
    for number, (name, content) in enumerate(broken_files().items()):
        part = ("train/cat", "train/dog", "test/dog")[number % 3]
        (folder / part / name).write_bytes(content)
    arguments = (f"--workdir={workdir}", "--epochs=1")
    status, output, errors = run(
        f"--dataset={folder}", "--skip_bad_images", *arguments, *SMALL_FLAGS
    )
    assert status == 0, errors
    assert "18 training images, 6 evaluation images" in output
    assert "Skipping 7 broken images of 31" in output
    _, *lines = (workdir / "bad_images.jsonl").read_text().splitlines()
    reasons = {
        pathlib.Path(record["name"]).name: record["reason"]
        for record in map(json.loads, lines)
    }
    assert reasons.keys() == broken_files().keys()
    assert all(reasons.values())
    # The search runs only once.
    before = (workdir / "bad_images.jsonl").stat().st_mtime_ns
    status, output, _ = run(f"--workdir={workdir}")
    assert status == 0
    assert "Skipping 7" in output
    assert (workdir / "bad_images.jsonl").stat().st_mtime_ns == before


@pytest.mark.slow
def test_image_that_breaks_later_loses_no_work(
    folder, workdir, run, monkeypatch
):
    """Like a disk that fails during a run."""
    arguments = (
        f"--dataset={folder}",
        f"--workdir={workdir}",
        "--checkpoint_every=1000",
        "--cache=none",
        "--steps=40",
        *SMALL_FLAGS,
    )
    broken, reads, real = folder / "train/dog/3.jpeg", [], tf.io.read_file

    def read_file(path):
        def fail_late():
            reads.append(1)
            if len(reads) > 120:
                broken.write_bytes(b"gone bad")

        tf.py_function(fail_late, [], [])
        return real(path)

    monkeypatch.setattr(
        "train_loop.data.image_files.tf.io.read_file", read_file
    )
    status, _, errors = run(*arguments)
    monkeypatch.undo()
    assert status == 1
    assert str(broken) in errors.splitlines()[-1]
    [saved] = (workdir / "checkpoints").glob("*.index")
    step = int(re.findall(r"\d+", saved.name)[0])
    # The number of images read ahead depends on the machine.
    assert step >= 1
    # The progress up to this step is saved.
    assert read_checkpoint(workdir, step)


@pytest.mark.slow
def test_checkpoint_before_a_broken_image_is_exact(tmp_path, run):
    folder, workdir = tmp_path / "images", tmp_path / "run"
    write_folder(folder, {"train/a": 30, "train/b": 30, "test/a": 1})
    arguments = (
        f"--dataset={folder}",
        "--cache=none",
        "--augment=",
        "--steps=25",
        *SMALL_FLAGS,
        "--image_size=8",
        "--batch_size=2",
        # Several steps in one call, one of them without a batch.
        "--report_every=100",
        "--checkpoint_every=100",
    )
    alone = tmp_path / "alone"
    run(*arguments, f"--workdir={alone}")
    split, position = datasets.open_dataset(str(folder)).splits["train"], 39
    [example] = batches.shuffled_examples(split, 0, position).take(1)
    broken = pathlib.Path(split.store.name(int(example["number"])))
    content = broken.read_bytes()
    broken.write_bytes(b"gone bad")
    status, _, errors = run(*arguments, f"--workdir={workdir}")
    assert status == 1
    assert str(broken) in errors.splitlines()[-1]
    assert (workdir / f"checkpoints/ckpt-{position // 2}.index").is_file()
    # With the image restored, the result is bitwise identical.
    broken.write_bytes(content)
    status, output, _ = run(f"--workdir={workdir}")
    assert status == 0
    assert f"from step {position // 2}" in output
    expected, values = read_checkpoint(alone, 25), read_checkpoint(workdir, 25)
    for key, value in expected.items():
        np.testing.assert_array_equal(values[key], value, err_msg=key)


@pytest.mark.slow
def test_broken_evaluation_image_is_reported(folder, workdir, run):
    (folder / "test/cat/9.jpg").write_bytes(b"not an image")
    status, _, errors = run(
        f"--dataset={folder}",
        f"--workdir={workdir}",
        "--steps=2",
        "--cache=none",
        *SMALL_FLAGS,
    )
    assert status == 1
    assert str(folder / "test/cat/9.jpg") in errors.splitlines()[-1]
    # The progress is saved.
    assert (workdir / "checkpoints/ckpt-2.index").is_file()


class Records(tfds.core.GeneratorBasedBuilder):
    """Twelve images of noise."""

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
        for number in range(12):
            image = random.integers(0, 255, (16, 16, 3)).astype("uint8")
            yield number, {"image": image, "label": number % 2}


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["none", "memory"])
def test_broken_record_file_is_reported(tmp_path, workdir, cache, run):
    builder = Records(data_dir=tmp_path)
    builder.download_and_prepare()
    [file] = builder.info.splits["train"].filepaths
    content = bytearray(pathlib.Path(file).read_bytes())
    content[len(content) // 2] ^= 255
    pathlib.Path(file).write_bytes(content)
    status, _, errors = run(
        "--dataset=records",
        f"--data_dir={tmp_path}",
        f"--workdir={workdir}",
        "--steps=4",
        f"--cache={cache}",
        *SMALL_FLAGS,
    )
    assert status == 1
    *_, line = errors.splitlines()
    assert f"{file}: damaged (" in line
