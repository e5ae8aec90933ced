"""The notebook for newcomers: its code and its kept outputs."""

import ast
import importlib
import json
import pathlib
import re

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from samples import SHRINK

from examples.execute import execute
from train_loop import Settings

ROOT = pathlib.Path(__file__).parents[1]
PATH = ROOT / "examples/train_your_own.ipynb"
# Folders that belong to one machine.
MACHINE = re.compile(r"/(home|root|tmp|usr|var|content|Users)/")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(notebook):
    """Returns the kinds of output of each cell: text, images."""
    return {
        cell.id: [
            sorted(output.get("data", [output.output_type]))
            for output in cell.outputs
        ]
        for cell in code_cells(notebook)
    }


@pytest.fixture
def kept():
    return nbformat.read(PATH, as_version=4)


def test_notebook_was_run_from_top_to_bottom(kept):
    counts = [cell.execution_count for cell in code_cells(kept)]
    assert counts == [*range(1, len(counts) + 1)]
    outputs = [output for cell in code_cells(kept) for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 6
    assert not MACHINE.search(json.dumps(outputs))
    assert PATH.stat().st_size < 1e6
    [amounts] = [
        cell.source
        for cell in code_cells(kept)
        if "parameters" in cell.metadata.get("tags", ())
    ]
    assert 'MODEL = "resnet50"' in amounts


def test_kept_outputs_show_a_model_that_learned(kept):
    [report] = [
        output.text
        for cell in code_cells(kept)
        if cell.id == "evaluate"
        for output in cell.outputs
    ]
    # A quarter would be chance.
    assert float(re.search(r"Accuracy +([\d.]+) %", report)[1]) > 80


def test_cells_use_existing_names_and_settings(kept):
    """Checked without running them."""
    lines = TransformerManager().transform_cell
    cells = [ast.parse(lines(cell.source)) for cell in code_cells(kept)]
    nodes = [node for cell in cells for node in ast.walk(cell)]
    imports = [
        (node.module, alias.name)
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        and node.module.split(".")[0] in ("train_loop", "resnet_layers")
        for alias in node.names
    ]
    assert len(imports) > 5
    for module, name in imports:
        assert hasattr(importlib.import_module(module), name), name
    jobs = [
        {keyword.arg: keyword.value for keyword in node.keywords}
        for node in nodes
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Settings"
    ]
    assert len(jobs) > 5
    for job in jobs:
        values = {
            name: value.value if isinstance(value, ast.Constant) else None
            for name, value in job.items()
        }
        assert Settings(**values).given.keys() <= values.keys()


@pytest.mark.slow
@pytest.mark.long
def test_notebook_runs(kept, tmp_path, monkeypatch):
    """With fewer images and steps than the kept outputs."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # Code that the kernel runs first; cells must not see its names.
    startup = tmp_path / "ipython/profile_default/startup"
    startup.mkdir(parents=True)
    (startup / "shrink.py").write_text(f"exec({SHRINK!r}, {{}})")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = execute(
        PATH,
        tmp_path,
        MODEL="resnet_tiny",
        NUM_PICTURES={"train": 4, "test": 3},
        NUM_SIGNS={"train": 16, "test": 12},
        EPOCHS=1,
        SIGNS_EPOCHS=1,
    )
    runs = tmp_path / "walk_through/runs"
    report = json.loads((runs / "pictures/report/report.json").read_text())
    assert (report["classes"], report["examples"]) == (4, 12)
    assert (runs / "pictures/report/report.html").is_file()
    signs = Settings.read(runs / "signs/flags.txt")
    assert (signs.image_size, signs.optimizer) == (64, "adam")
    assert signs.learning_rate == 0.00015
    compared = runs / "signs/comparison-signs_pretrained/comparison.json"
    assert json.loads(compared.read_text())["examples"] == 12
    exported = runs / "pictures/export"
    assert (exported / "saved_model/1/saved_model.pb").is_file()
    assert (exported / "model_card.md").is_file()
    # Kept outputs belong to the current cells.
    assert kinds(notebook) == kinds(kept)
