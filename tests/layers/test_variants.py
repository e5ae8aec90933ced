"""Entries of VARIANTS: names, descriptions, and parity with timm."""

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import save_file
from weight_models import zero_kernels

from benchmarks.fixed_random import (
    TOLERANCE,
    difference,
    digest,
    images,
    random_weights,
)
from resnet_layers import VARIANTS, ResNet, load_weights
from resnet_layers.weights.names import torch_targets

# Outputs of timm's models, written by
#   python -m benchmarks.parity --names=... --record=tests/layers/parity.json
RECORDED = json.loads(
    pathlib.Path(__file__).with_name("parity.json").read_text(encoding="utf-8")
)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDED)
def test_variants_match_timm(name, tmp_path):
    expected = RECORDED[name]
    with zero_kernels():
        ours = VARIANTS[name]()
        ours.build((None, 64, 64, 3))
    parameters = sum(v.shape.num_elements() for v in ours.trainable_variables)
    assert parameters == expected["parameters"]
    shapes = {
        name: target.write(np.asarray(target.variable)).shape
        for name, target in torch_targets(ours).items()
    }
    assert digest(shapes) == expected["tensors"]
    path = tmp_path / "model.safetensors"
    save_file(random_weights(shapes), path)
    load_weights(ours, path)
    path.unlink()
    batch = images(64)
    maps = ours.features(batch).values()
    count = len(expected["logits"][0])
    corners = [np.asarray(m)[:, 0, 0, :count] for m in maps]
    for mine, theirs in zip(corners, expected["features"], strict=True):
        # A few values have a smaller range than all of them.
        assert difference(mine, theirs) <= TOLERANCE
    logits = np.asarray(ours(batch))[:, :count]
    assert difference(logits, expected["logits"]) <= TOLERANCE


def test_every_variant_has_a_description():
    texts = [variant.__doc__ for variant in VARIANTS.values()]
    assert len(set(texts)) == len(VARIANTS) > 100
    assert VARIANTS["seresnext26t_32x4d"].__doc__ == (
        "ResNet of bottleneck blocks (2, 2, 2, 2 per stage) with 32 groups of "
        "width 4 (ResNeXt), a tiered stem, pooled shortcuts (ResNet-T) and "
        "squeeze-and-excitation."
    )
    # All arguments differ too.
    arguments = [
        json.dumps({**variant.arguments, "name": ""}, sort_keys=True)
        for variant in VARIANTS.values()
    ]
    assert len(set(arguments)) == len(arguments)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet500", "resnet50"),
        ("ResNet50", "resnet50"),
        ("resnet50.a1_in1k", "resnet50"),
        ("resnext50", "resnext50_32x4d"),
        ("vgg", None),
    ],
)
def test_unknown_name_is_reported_with_the_nearest(name, nearest):
    hint = f"Did you mean .*{nearest}" if nearest else "Use a name in VARIANTS"
    with pytest.raises(
        KeyError, match=f"^variant={name}: unknown. {hint}"
    ) as error:
        VARIANTS[name]
    assert "\n" not in str(error.value)
    assert name not in VARIANTS


def test_arguments_override_those_of_the_variant():
    resnet = VARIANTS["seresnet50"](attention=None, num_classes=7, name="mine")
    config = ResNet(num_classes=7, name="mine").get_config()
    assert resnet.get_config() == {**config, "attention": None}
