"""What a type checker knows of the public names: read by mypy, never run."""

from typing import Any

from typing_extensions import assert_type

import resnet_layers
import train_loop
from resnet_layers import VARIANTS, Normalization, Preprocessing, ResNet
from resnet_layers.weights.assign import Loaded
from train_loop import Run, Settings, load_classifier
from train_loop.prediction.classifier import Classifier

model = VARIANTS["resnet50"](num_classes=37)
assert_type(model, ResNet)
assert_type(model.with_classes(3), ResNet)
assert_type(model.parts, list[str])
assert_type(resnet_layers.load_weights(model, "a.safetensors"), Loaded)
info = resnet_layers.find_weights("timm/resnet50d.ra2_in1k")
assert_type(info.variant, str | None)
assert_type(info.preprocessing, Preprocessing)
assert_type(info.preprocessing.normalization, Normalization | None)

classifier = train_loop.fit("photos", weights="imagenet")
assert_type(classifier.predict_one("cat.jpg"), list[tuple[str, float]])
run = Run.create(Settings(dataset="photos", image_size=224, epochs=5))
assert_type(run.evaluate(), dict[str, float])
assert_type(run.batch_size, int)
assert_type(train_loop.evaluate(run.settings), dict[str, Any])
assert_type(load_classifier("imagenet", model="resnet50"), Classifier)

assert_type(resnet_layers.list_models("*50d*"), list[str])

# Unused ignores are errors, so these must be errors.
ResNet(widht="64", width="64")  # type: ignore[arg-type]
resnet_layers.load_weights(model)  # type: ignore[call-arg]
Run.create("photos")  # type: ignore[arg-type]
load_classifier("imagenet", clas_names=["cat"])  # type: ignore[call-arg]
