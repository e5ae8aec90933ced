"""The notebooks for newcomers: their code and their kept outputs."""

import ast
import importlib
import json
import re

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from layout_counts import ROOT

from examples.execute import execute
from train_loop import Settings

NOTEBOOKS = {
    path.stem: nbformat.read(path, as_version=4)
    for path in sorted((ROOT / "examples").glob("*.ipynb"))
}
# Folders that belong to one machine.
MACHINE = re.compile(r"/(home|root|tmp|usr|var|content|Users|opt|work)/")
# Functions whose arguments are settings.
WITH_SETTINGS = ("Settings", "fit")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs_of(notebook):
    return [o for cell in code_cells(notebook) for o in cell.outputs]


def kinds(notebook):
    """Returns the kinds of output of each cell: text, images."""
    return {
        cell.id: [
            sorted(output.get("data", [output.output_type]))
            for output in cell.outputs
        ]
        for cell in code_cells(notebook)
    }


@pytest.fixture(params=NOTEBOOKS)
def kept(request):
    return NOTEBOOKS[request.param]


def test_there_are_three_notebooks():
    assert [*NOTEBOOKS] == ["hand_signs", "layers_in_keras", "your_own_photos"]


def test_notebook_was_run_from_top_to_bottom(kept):
    counts = [cell.execution_count for cell in code_cells(kept)]
    assert counts == [*range(1, len(counts) + 1)]
    outputs = outputs_of(kept)
    assert outputs
    assert not [o for o in outputs if o.output_type == "error"]
    text = json.dumps(outputs)
    assert not MACHINE.search(text)
    assert "WARNING" not in text
    assert len(text) < 1e6


def test_notebook_is_short(kept):
    lines = [
        line
        for cell in code_cells(kept)
        for line in cell.source.splitlines()
        if line.strip()
    ]
    assert len(lines) < 60


def test_kept_outputs_show_that_weights_help():
    """By McNemar's test, on the same images."""
    [table] = [
        output.text
        for cell in code_cells(NOTEBOOKS["hand_signs"])
        if cell.id == "compare"
        for output in cell.outputs
    ]
    [row] = re.findall(r"^Accuracy .*$", table, re.MULTILINE)
    scratch, finetuned = re.findall(r"([\d.]+) %", row)[:2]
    assert float(finetuned) > float(scratch)
    assert float(row.split()[-1]) < 0.05


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
    assert imports
    for module, name in imports:
        assert hasattr(importlib.import_module(module), name), name
    for node in nodes:
        if not isinstance(node, ast.Call) or not node.keywords:
            continue
        if getattr(node.func, "id", None) in WITH_SETTINGS:
            values = {
                keyword.arg: getattr(keyword.value, "value", None)
                for keyword in node.keywords
                if keyword.arg is not None
            }
            assert Settings(**values).given.keys() <= values.keys()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs(name, tmp_path):
    """Kept outputs belong to the current cells."""
    notebook = execute(ROOT / f"examples/{name}.ipynb", tmp_path)
    assert kinds(notebook) == kinds(NOTEBOOKS[name])
