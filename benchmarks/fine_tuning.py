"""Fine-tunes a model on parts of a data set, beside training from scratch.

    python -m benchmarks.fine_tuning --dataset=FOLDER --weights=FILE

`FOLDER` has a folder of images for each class. A fifth of each class is held
out; of the rest, some are trained on, drawn by the seed. Both starts have the
settings of the recipe `finetune`. The accuracies of all evaluations go to
`fine_tuning.json`, from which `docs/make_images.py` draws the figure.
"""

import json
import os
import pathlib
import random
import tempfile

from absl import app, flags

from train_loop import Run, Settings
from train_loop.console import text_table

FILE = pathlib.Path(__file__).with_suffix(".json")

FLAGS = flags.FLAGS
flags.DEFINE_string("dataset", None, "Folder of images.", required=True)
flags.DEFINE_string("weights", None, "Weights to start from.", required=True)
flags.DEFINE_string("model", "resnet20", "Model of the weights.")
flags.DEFINE_integer("image_size", 32, "Height and width of the images.")
flags.DEFINE_multi_integer("sizes", [50, 200, 1600], "Training images.")
flags.DEFINE_integer("seeds", 3, "Number of seeds.", lower_bound=1)


def link_images(folder, size, seed):
    """Links a training and a test split of the data set into a folder.

    Args:
      folder: `pathlib.Path`.
      size: number of training images, over all classes.
      seed: seed of their choice; the test images are always the same.
    """
    source = pathlib.Path(FLAGS.dataset).resolve()
    classes = sorted(path for path in source.iterdir() if path.is_dir())
    held_out, chosen = random.Random(0), random.Random(seed)
    for path in classes:
        files = sorted(path.iterdir())
        held_out.shuffle(files)
        test, pool = files[: len(files) // 5], files[len(files) // 5 :]
        chosen.shuffle(pool)
        for split, part in (
            ("train", pool[: size // len(classes)]),
            ("test", test),
        ):
            target = folder / split / path.name
            target.mkdir(parents=True)
            for file in part:
                os.symlink(file, target / file.name)


def accuracies(size, seed, start):
    """Returns [[step, accuracy], ...] of a run."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        link_images(folder / "images", size, seed)
        run = Run.create(
            Settings(
                dataset=str(folder / "images"),
                recipe="finetune",
                model=FLAGS.model,
                weights=FLAGS.weights if start == "weights" else None,
                image_size=FLAGS.image_size,
                crop_fraction=1,
                evaluate_every=50 if size < 1000 else 150,
                checkpoint_every=10**6,
                seed=seed,
                workdir=str(folder / "run"),
            )
        )
        run.train()
        history = run.history()["eval"]
    pairs = zip(history["step"], history["accuracy"], strict=True)
    return [[int(step), round(float(value), 4)] for step, value in pairs]


def main(_):
    results = []
    for seed in range(FLAGS.seeds):
        for size in FLAGS.sizes:
            for start in ("weights", "random"):
                curve = accuracies(size, seed, start)
                results.append(
                    {"images": size, "start": start, "seed": seed}
                    | {"curve": curve}
                )
                FILE.write_text(json.dumps(results) + "\n")
    rows = [["images", "start", "seed", "steps", "accuracy"]]
    rows += [
        [
            *(str(each[name]) for name in ("images", "start", "seed")),
            str(each["curve"][-1][0]),
            f"{each['curve'][-1][1]:.1%}",
        ]
        for each in results
    ]
    print(text_table(rows))


if __name__ == "__main__":
    app.run(main)
