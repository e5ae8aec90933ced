"""`resnet_layers` without the packages that only `train_loop` requires."""

import subprocess
import sys

import pytest
from layout_counts import ROOT

SCRIPT = """
import sys

BLOCKED = {
    "PIL", "filelock", "huggingface_hub", "jinja2", "matplotlib",
    "safetensors", "scipy", "sklearn", "tensorboard", "tensorflow_datasets",
    "tqdm", "train_loop",
}

class Blocker:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())

import numpy as np
import tensorflow as tf
from resnet_layers import VARIANTS, load_weights

images = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype("f4")
labels = np.arange(8) % 2
model = VARIANTS["resnet20"](num_classes=2)
loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(optimizer=tf.keras.optimizers.SGD(0.1), loss=loss)
model.fit(images, labels, epochs=1, verbose=0)
logits = model(images, training=False)
model.save(sys.argv[1] + "/model.keras")
loaded = tf.keras.models.load_model(sys.argv[1] + "/model.keras")
np.testing.assert_allclose(loaded(images, training=False), logits, atol=1e-5)
model.save_weights(sys.argv[1] + "/model.weights.h5")
other = VARIANTS["resnet20"](num_classes=2)
other.build((None, 32, 32, 3))
load_weights(other, sys.argv[1] + "/model.weights.h5")
np.testing.assert_allclose(other(images, training=False), logits, atol=1e-5)
assert not {name.partition(".")[0] for name in sys.modules} & BLOCKED
"""


@pytest.mark.slow
def test_models_train_and_load_with_tensorflow_alone(tmp_path):
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=ROOT, check=True
    )
