"""The model card, as the Hugging Face Hub reads it."""

import re
import sys

import huggingface_hub
import pytest
from classifiers import small_classifier

from train_loop.exports.bundle import Card, model_card

REPORT = {
    "step": 1200,
    "split": "eval",
    "examples": 3669,
    "loss": 0.4,
    "accuracy": 0.9321,
    "macro_f1": 0.93,
    "intervals": {"accuracy": [0.924, 0.941]},
}
FILES = [["file", "MB"], ["onnx/model.onnx", "1.0"]]


def card_of(report):
    return model_card(
        small_classifier(),
        Card(
            'my "pets": all',
            {"model": "small", "seed": "3"},
            "step 1,200",
            report,
            FILES,
        ),
    )


def test_hub_reads_metadata_and_metrics():
    facts = huggingface_hub.ModelCard(card_of(REPORT)).data
    assert facts.license == "other"
    assert facts.library_name == "keras"
    assert facts.pipeline_tag == "image-classification"
    assert facts.datasets == ['my "pets": all']
    assert "resnet" in facts.tags
    results = {each.metric_type: each for each in facts.eval_results}
    assert results.keys() == {"accuracy", "f1", "loss"}
    assert results["accuracy"].metric_value == 0.9321
    assert results["accuracy"].task_type == "image-classification"


def test_card_contains_results_and_preprocessing():
    text = huggingface_hub.ModelCard(card_of(REPORT)).text
    assert "| Accuracy | 0.9321 | 0.9240 to 0.9410 |" in text
    assert "| Macro F1 | 0.9300 |  |" in text
    assert "Measured on 3,669 held-out images at step 1,200." in text
    assert "into one of 6 classes. Weights: step 1,200." in text
    assert "16 x 16 (bilinear)" in text
    assert "123.675, 116.28, 103.53" in text
    assert "--seed=3" in text
    assert "onnx/model.onnx" in text
    assert "ape, bee, cat" in text
    assert "{" not in text


def test_card_explains_how_to_open_the_keras_file(monkeypatch):
    assert "resnet_layers" not in card_of(REPORT)
    file = ["keras/model.keras", "1.0"]
    monkeypatch.setattr(sys.modules[__name__], "FILES", [*FILES, file])
    text = card_of(REPORT)
    [code] = re.findall("```python\n(.*?)```", text, re.DOTALL)
    imported, *_, opened = code.strip().splitlines()
    assert imported.startswith("import resnet_layers")
    assert opened.endswith('load_model("keras/model.keras")')


@pytest.mark.parametrize("report", [{}])
def test_card_without_a_report_says_how_to_measure(report):
    card = huggingface_hub.ModelCard(card_of(report))
    assert card.data.eval_results is None
    assert "--mode=evaluate" in card.text
