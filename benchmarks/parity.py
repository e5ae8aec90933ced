"""Compares every variant with the model of that name in timm or torchvision.

    pip install --editable '.[parity]'
    python -m benchmarks.parity [--names=resnet50,seresnet*] [--library=timm]

The third-party model gets random weights, which are written to a file. The
variant loads the file, and both predict the same random images. The columns:

parameters      trainable parameters; a plus if the third-party model has a
                different number
multiply-adds   of the variant, for one image of 224 x 224
logits          largest difference, as a fraction of the range of all logits
features        the same for the feature map with the largest difference
back            whether the third-party model loads the variant's weights with
                `strict=True`, bitwise identical

Deep models without batch norm (BiT) amplify rounding errors of float32;
`--dtype=float64` shows that there is no other difference.

The exit status is 1 if a model differs: outputs by more than 1e-4, or anything
else.
"""

import fnmatch
import json
import pathlib
import sys
import tempfile

import numpy as np
import tensorflow as tf
from absl import app, flags

from benchmarks.fixed_random import (
    TOLERANCE,
    difference,
    digest,
    images,
    random_weights,
)
from resnet_layers import VARIANTS, load_weights, save_safetensors
from train_loop.benchmark.model_costs import model_costs

FLAGS = flags.FLAGS
flags.DEFINE_list("names", ["*"], "Names or patterns of variants.")
flags.DEFINE_enum(
    "library", "timm", ["timm", "torchvision"], "Third-party library."
)
flags.DEFINE_integer("image_size", 64, "Height and width.", lower_bound=32)
flags.DEFINE_enum(
    "dtype", "float32", ["float32", "float64"], "dtype of both models."
)
flags.DEFINE_string("record", None, "JSON file for the third-party outputs.")

# Numbers of logits and of feature-map values in the file of `--record`.
RECORDED = 4


def third_party_model(library, name):
    """Returns the model of a library, or None if it has none."""
    try:
        import timm
        import torchvision
    except ImportError as error:
        sys.exit(
            f"error: {error.name} is not installed. Install it: pip install "
            "--editable '.[parity]'."
        )
    if library == "torchvision":
        if name not in torchvision.models.list_models(torchvision.models):
            return None
        return getattr(torchvision.models, name)()
    families = timm.list_models(module="resnet")
    families += timm.list_models(module="resnetv2")
    return timm.create_model(name) if name in families else None


def run_third_party(model, batch):
    """Returns (logits, feature maps) as arrays, channels last."""
    import torch

    x = torch.from_numpy(batch.transpose(0, 3, 1, 2))
    with torch.no_grad():
        logits = model(x).numpy()
        maps = []
        if hasattr(model, "forward_intermediates"):
            _, (_, *maps) = model.forward_intermediates(x, norm=True)
    return logits, [value.numpy().transpose(0, 2, 3, 1) for value in maps]


def compare(name, theirs, folder):
    """Returns {column: value} of a variant."""
    import torch

    state = theirs.eval().state_dict()
    shapes = {k: tuple(v.shape) for k, v in state.items() if v.ndim}
    weights = random_weights(shapes)
    path = folder / "model.safetensors"
    from safetensors.numpy import load_file, save_file

    save_file(weights, path)
    theirs.load_state_dict(
        {**state, **{k: torch.from_numpy(v) for k, v in weights.items()}}
    )
    batch = images(FLAGS.image_size).astype(FLAGS.dtype)
    theirs.to(getattr(torch, FLAGS.dtype))
    logits, maps = run_third_party(theirs, batch)
    ours = VARIANTS[name](dtype=FLAGS.dtype)
    ours.build((None, FLAGS.image_size, FLAGS.image_size, 3))
    load_weights(ours, path)
    features = list(ours.features(batch).values())
    save_safetensors(ours, path)
    written = load_file(path)
    theirs.load_state_dict(
        {
            **{k: v for k, v in state.items() if not v.ndim},
            **{k: torch.from_numpy(v) for k, v in written.items()},
        },
        strict=True,
    )
    path.unlink()
    total = model_costs(ours, 224)["total"]
    parameters = sum(p.numel() for p in theirs.parameters())
    return {
        "parameters": total.parameters,
        "same parameters": total.parameters == parameters,
        "multiply-adds": total.multiply_adds,
        "logits": difference(ours(batch), logits),
        # torchvision has no feature maps.
        "features": max(
            (difference(*pair) for pair in zip(features, maps, strict=True)),
        )
        if maps
        else None,
        "back": all(np.array_equal(written[k], weights[k]) for k in weights),
        "recorded": {
            "parameters": parameters,
            "tensors": digest(shapes),
            "logits": logits[:, :RECORDED].tolist(),
            "features": [m[:, 0, 0, :RECORDED].tolist() for m in maps],
        },
    }


def row(name, found):
    """Returns the row of a variant as text."""
    features = found["features"]
    return (
        f"{name:24}{found['parameters']:>13,}"
        f"{' ' if found['same parameters'] else '+'}"
        f"{found['multiply-adds'] / 1e9:>8.2f} G"
        f"{found['logits']:>10.1e}"
        f"{'-' if features is None else format(features, '.1e'):>10}"
        f"  {'exact' if found['back'] else 'DIFFERS'}"
    )


def is_equal(found):
    """Returns whether the variant equals the third-party model."""
    largest = max(found["logits"], found["features"] or 0.0)
    return found["same parameters"] and found["back"] and largest <= TOLERANCE


def main(_):
    names = [
        name
        for name in VARIANTS
        if any(fnmatch.fnmatch(name, pattern) for pattern in FLAGS.names)
    ]
    failed, recorded = [], {}
    print(
        f"{'model':24}{'parameters':>13} {'multiply-adds':>9}{'logits':>8}"
        f"{'features':>10}  back"
    )
    for name in names:
        theirs = third_party_model(FLAGS.library, name)
        if theirs is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = compare(name, theirs, pathlib.Path(folder))
        print(row(name, found), flush=True)
        recorded[name] = found["recorded"]
        if not is_equal(found):
            failed.append(name)
        # Frees the traced graphs.
        tf.keras.backend.clear_session()
    print(f"{len(recorded) - len(failed)} of {len(recorded)} models are equal.")
    if FLAGS.record:
        text = json.dumps(recorded, indent=1)
        pathlib.Path(FLAGS.record).write_text(text + "\n", encoding="utf-8")
    sys.exit(1 if failed or not recorded else 0)


if __name__ == "__main__":
    app.run(main)
