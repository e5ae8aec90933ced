"""Compares every variant with the net of the same name in timm or torchvision.

    pip install --editable '.[parity]'
    python -m benchmarks.parity [--names=resnet50,seresnet*] [--library=timm]

The other library's net gets random weights, which are written to a file; ours
reads the file, and both see the same random images. A row for each net:

parameters      trainable ones; a plus where they are not as many there
multiply-adds   of ours, for one image of 224 x 224
logits          largest difference, as a part of the spread of all logits
features        the same of the stage's map where it is largest
back            whether what ours writes loads there with `strict=True`, and
                is the same to the last bit

Deep nets without batch norm, BiT's, make much of the last digits of float32;
`--dtype=float64` shows that it is no more than these.

Status 1 if any net differs, by more than 1e-4 or at all.
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
flags.DEFINE_list("names", ["*"], "Variants, by name or pattern.")
flags.DEFINE_enum("library", "timm", ["timm", "torchvision"], "Compared with.")
flags.DEFINE_integer("image_size", 64, "Height and width.", lower_bound=32)
flags.DEFINE_enum(
    "dtype", "float32", ["float32", "float64"], "What both compute in."
)
flags.DEFINE_string("record", None, "A file for what the other library says.")

# Logits, and values of each map, that `--record` writes down.
RECORDED = 4


def their_net(library, name):
    """Returns the other library's net, or None where it has none."""
    try:
        import timm
        import torchvision
    except ImportError as error:
        sys.exit(
            f"{error.name} is not installed: run `pip install --editable "
            "'.[parity]'` and start again."
        )
    if library == "torchvision":
        if name not in torchvision.models.list_models(torchvision.models):
            return None
        return getattr(torchvision.models, name)()
    families = timm.list_models(module="resnet")
    families += timm.list_models(module="resnetv2")
    return timm.create_model(name) if name in families else None


def run_theirs(net, batch):
    """Returns (logits, feature maps) as arrays, channels last."""
    import torch

    x = torch.from_numpy(batch.transpose(0, 3, 1, 2))
    with torch.no_grad():
        logits = net(x).numpy()
        maps = []
        if hasattr(net, "forward_intermediates"):
            _, (_, *maps) = net.forward_intermediates(x, norm=True)
    return logits, [value.numpy().transpose(0, 2, 3, 1) for value in maps]


def compare(name, theirs, folder):
    """Returns {column: value} for one net."""
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
    logits, maps = run_theirs(theirs.to(getattr(torch, FLAGS.dtype)), batch)
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
        # torchvision shows none.
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
    """Returns the line of one net."""
    features = found["features"]
    return (
        f"{name:24}{found['parameters']:>13,}"
        f"{' ' if found['same parameters'] else '+'}"
        f"{found['multiply-adds'] / 1e9:>8.2f} G"
        f"{found['logits']:>10.1e}"
        f"{'-' if features is None else format(features, '.1e'):>10}"
        f"  {'exact' if found['back'] else 'DIFFERS'}"
    )


def holds(found):
    """Tells whether a net is the other library's."""
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
        f"{'net':24}{'parameters':>13} {'multiply-adds':>9}{'logits':>8}"
        f"{'features':>10}  back"
    )
    for name in names:
        theirs = their_net(FLAGS.library, name)
        if theirs is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = compare(name, theirs, pathlib.Path(folder))
        print(row(name, found), flush=True)
        recorded[name] = found["recorded"]
        if not holds(found):
            failed.append(name)
        # Of the graphs that were traced.
        tf.keras.backend.clear_session()
    print(f"{len(recorded) - len(failed)} of {len(recorded)} nets hold.")
    if FLAGS.record:
        text = json.dumps(recorded, indent=1)
        pathlib.Path(FLAGS.record).write_text(text + "\n", encoding="utf-8")
    sys.exit(1 if failed or not recorded else 0)


if __name__ == "__main__":
    app.run(main)
