"""The safetensors file: weights as torchvision and timm name them."""

import json

from resnet_layers import WeightsError, load_weights, save_safetensors
from train_loop.errors import UserError
from train_loop.export.rewriting import copy_of
from train_loop.prediction.classifier import Classifier


def write_safetensors(shipment, path):
    """Writes a safetensors file, and beside it the `config.json` of timm.

    Raises:
      UserError: torch has no net of this kind.
    """
    classifier = shipment.classifier
    try:
        save_safetensors(classifier.model, path)
    except WeightsError as error:
        raise UserError(str(error)) from error
    preprocessing = classifier.preprocessing
    mean, stddev, _ = preprocessing.normalization
    size = preprocessing.image_size
    config = {
        "architecture": classifier.model.name,
        "num_classes": len(classifier.class_names),
        "label_names": classifier.class_names,
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "crop_pct": preprocessing.crop_fraction,
            "interpolation": preprocessing.interpolation,
            "mean": [number / 255 for number in mean],
            "std": [number / 255 for number in stddev],
        },
    }
    text = json.dumps(config, indent=2) + "\n"
    path.with_name("config.json").write_text(text)


def read_safetensors(classifier, path):
    """Returns a classifier with the weights that a file holds.

    Args:
      classifier: whose net and preprocessing the file's are.
      path: of the file.
    """
    model = copy_of(classifier)
    model.set_weights([weight * 0 for weight in model.get_weights()])
    load_weights(model, path)
    return Classifier(model, classifier.preprocessing, classifier.class_names)
