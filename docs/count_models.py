"""What each variant costs, for the page on the model zoo.

    python -m docs.count_models [VARIANT ...]

writes `docs/reference/counted.json`. Building all models takes minutes, which
is why their numbers are kept, and why `docs/generate.py` does not do it.
"""

import gc
import json
import pathlib
import sys

import tensorflow as tf

from resnet_layers import VARIANTS
from train_loop.benchmark.model_costs import model_costs

FOLDER = pathlib.Path(__file__).parent / "reference"
COUNTED_FILE = FOLDER / "counted.json"
PUBLISHED = json.loads((FOLDER / "published.json").read_text("utf-8"))


def count(name):
    """Returns the costs of a variant at its image size, for one image."""
    size = PUBLISHED[name]["image_size"]
    model = VARIANTS[name]()
    model.build((None, size, size, 3))
    total = model_costs(model, size)["total"]
    return {
        "parameters": total.parameters,
        "multiply_adds": total.multiply_adds,
        "activation_bytes": total.activation_bytes,
    }


def main(names):
    """Counts some variants anew, or all; keeps the numbers of the others."""
    counted = {}
    if COUNTED_FILE.exists():
        counted = json.loads(COUNTED_FILE.read_text("utf-8"))
    for name in names or VARIANTS:
        counted[name] = count(name)
        print(name, counted[name], flush=True)
        # A line each, so that a change of one is a change of a line.
        lines = [
            f"  {json.dumps(each)}: {json.dumps(counted[each])}"
            for each in VARIANTS
            if each in counted
        ]
        COUNTED_FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
        tf.keras.backend.clear_session()
        gc.collect()


if __name__ == "__main__":
    main(sys.argv[1:])
