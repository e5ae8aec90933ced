"""Execution of a notebook from top to bottom, with its outputs kept in it.

    python -m examples.execute examples/hand_signs.ipynb

executes it in an empty folder, and writes the outputs into the notebook.
"""

import os
import pathlib
import sys
import tempfile

import nbclient
import nbformat

ROOT = pathlib.Path(__file__).parents[1]


def execute(path, folder):
    """Executes a notebook and returns it with its outputs.

    Args:
      path: path of the notebook.
      folder: working directory of the execution.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell raised an error.
    """
    notebook = nbformat.read(path, as_version=4)
    # The kernel runs in another folder than that of the notebook.
    parts = (ROOT, ROOT / "examples", os.environ.get("PYTHONPATH"))
    paths = os.pathsep.join(str(part) for part in parts if part)
    client = nbclient.NotebookClient(
        notebook,
        resources={"metadata": {"path": str(folder)}},
        timeout=600,
        record_timing=False,
        # Text that is printed in several pieces becomes one output.
        coalesce_streams=True,
    )
    client.execute(env={**os.environ, "PYTHONPATH": paths})
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                _without(folder, output)
                for output in cell.outputs
                # Progress bars are of no interest in a finished notebook.
                if output.get("name") != "stderr"
            ]
    return notebook


def _without(folder, output):
    """Returns an output without the path of the working directory."""
    if output.output_type == "stream":
        output.text = output.text.replace(f"{folder}/", "")
    return output


def main(path):
    with tempfile.TemporaryDirectory() as folder:
        notebook = execute(path, pathlib.Path(folder).resolve())
    nbformat.write(notebook, path)


if __name__ == "__main__":
    main(sys.argv[1])
