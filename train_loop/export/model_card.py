"""The model card: what a model is, for the people who find its files.

In the format of the Hugging Face hub: facts for programs on top, in YAML, and
text below. https://huggingface.co/docs/hub/model-cards
"""

import json
from typing import NamedTuple

from train_loop.console import printable, text_table

# Keys of report.json: what the hub calls them, and what people do.
METRICS = {
    "accuracy": ("accuracy", "Accuracy"),
    "top_5_accuracy": ("top_5_accuracy", "Top-5 accuracy"),
    "mean_class_accuracy": ("mean_class_accuracy", "Mean per-class accuracy"),
    "macro_f1": ("f1", "Macro F1"),
    "weighted_f1": ("weighted_f1", "Weighted F1"),
    "mean_average_precision": ("mean_average_precision", "mAP"),
    "mean_roc_auc": ("roc_auc", "Mean ROC-AUC"),
    "expected_calibration_error": (
        "expected_calibration_error",
        "Expected calibration error",
    ),
    "loss": ("loss", "Loss"),
}
TEXT = """\
---
{facts}
---

# {name}

{model}, trained on {dataset}: names one of {count} classes for a picture. \
Its weights are {weights}.

## Licence

To be filled in, here and in `license` at the top of this file: that of the \
model, and what the pictures it was trained on allow.

## Results

{results}

## What pictures go through

The square in the middle, {crop:.4g} of the shorter side, resized to \
{size} x {size} ({interpolation}), RGB. Less the mean ({mean}) by the standard \
deviation ({stddev}), on the scale from 0 to 255; all files but the \
safetensors do that themselves, and take whole numbers from 0 to 255.

## Files

`classifier.json` beside each has the names of the classes, in the order of \
the probabilities, and the numbers above. Each was compared with the model \
when it was written, and `measured.json` keeps what came of it:

```
{files}
```
{opening}
## How it was trained

```
{recipe}
```

## Classes

{classes}
"""
# The layers of this file are not Keras's own.
KERAS = """
`keras/model.keras` needs TensorFlow and the package `resnet-layers`: import \
`resnet_layers` before the file is opened.

```python
import resnet_layers  # Registers the layers of the file.
import tensorflow as tf

model = tf.keras.models.load_model("keras/model.keras")
```
"""


class Card(NamedTuple):
    """What a card tells beside the classifier itself.

    `dataset` is the name of what it was trained on, `recipe` {setting: text},
    `weights` which of the run's the files have, in words, `report` what an
    evaluation of these measured (empty where there was none), and `files` rows
    of text about the files, the header first.
    """

    dataset: str
    recipe: dict
    weights: str
    report: dict
    files: list


def model_card(classifier, card):
    """Returns the text of a card.

    Args:
      classifier: a `Classifier` that is `portable`.
      card: a `Card`.
    """
    preprocessing = classifier.preprocessing
    mean, stddev, _ = preprocessing.normalization
    name = f"{classifier.model.name} on {card.dataset}"
    facts = _facts(name, card)
    names = [row[0] for row in card.files]
    return TEXT.format(
        # What is JSON is YAML as well.
        facts="\n".join(f"{k}: {json.dumps(v)}" for k, v in facts.items()),
        name=name,
        model=classifier.model.name,
        dataset=card.dataset,
        weights=card.weights,
        count=len(classifier.class_names),
        results=_results(card.report),
        crop=preprocessing.crop_fraction,
        size=preprocessing.image_size,
        interpolation=preprocessing.interpolation,
        mean=", ".join(f"{number:g}" for number in mean),
        stddev=", ".join(f"{number:g}" for number in stddev),
        files=text_table(card.files),
        opening=KERAS if "keras/model.keras" in names else "",
        recipe="\n".join(f"--{k}={v}" for k, v in card.recipe.items()),
        classes=", ".join(map(printable, classifier.class_names)),
    )


def _facts(name, card):
    measured = {k: v for k, v in card.report.items() if k in METRICS}
    facts = {
        "license": "other",
        "license_name": "to-be-filled-in",
        "library_name": "keras",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "resnet", "tensorflow", "keras"],
        "datasets": [card.dataset],
        "metrics": [METRICS[key][0] for key in measured] or ["accuracy"],
    }
    if measured:
        results = {
            "task": {"type": "image-classification"},
            "dataset": {"name": card.dataset, "type": card.dataset},
            "metrics": [
                {
                    "type": METRICS[key][0],
                    "name": METRICS[key][1],
                    "value": value,
                }
                for key, value in measured.items()
            ],
        }
        facts["model-index"] = [{"name": name, "results": [results]}]
    return facts


def _results(report):
    """Returns a table of what was measured, with intervals where known."""
    if not report:
        return (
            "None of these weights yet: `--mode=evaluate`, with the same "
            "`--checkpoint` and `--averaged`, measures them, and another "
            "export tells of it here."
        )
    intervals = report.get("intervals", {})
    lines = ["| metric | value | 95 % interval |", "|---|---|---|"]
    for key, (_, title) in METRICS.items():
        if key in report:
            interval = " to ".join(f"{n:.4f}" for n in intervals.get(key, ()))
            lines.append(f"| {title} | {report[key]:.4f} | {interval} |")
    count, step = report.get("examples"), report.get("step")
    lines += ["", f"On {count:,} pictures held out, at step {step:,}."]
    return "\n".join(lines)
