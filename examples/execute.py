"""Runs a notebook from top to bottom, as somebody would who has just come.

    python -m examples.execute examples/train_your_own.ipynb

runs it in an empty folder and keeps what its cells put out in it, for those
who only look at it.
"""

import pathlib
import sys
import tempfile

import nbclient
import nbformat


def execute(path, folder, **amounts):
    """Returns a notebook with the outputs of a run.

    Args:
      path: of the notebook.
      folder: where it runs.
      **amounts: other values for names in the cell tagged "parameters".

    Raises:
      nbclient.exceptions.CellExecutionError: a cell raised an error.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            lines = [f"{name} = {value!r}" for name, value in amounts.items()]
            cell.source = "\n".join([cell.source, *lines])
    client = nbclient.NotebookClient(
        notebook,
        resources={"metadata": {"path": str(folder)}},
        timeout=600,
        record_timing=False,
        # One output for what is printed bit by bit.
        coalesce_streams=True,
    )
    client.execute()
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                _without(folder, output)
                for output in cell.outputs
                # Progress bars are for those who watch.
                if output.get("name") != "stderr"
            ]
    return notebook


def _without(folder, output):
    """Returns an output that does not tell where it was made."""
    if output.output_type == "stream":
        output.text = output.text.replace(f"{folder}/", "")
    return output


def main(path):
    with tempfile.TemporaryDirectory() as folder:
        notebook = execute(path, pathlib.Path(folder).resolve())
    nbformat.write(notebook, path)


if __name__ == "__main__":
    main(sys.argv[1])
