"""Executed notebooks as a person would have left them: one cell of parameters, no remains of progress bars."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat

from ..paper.notebook_pages import joined, without_progress


def tidy(path: Path, parameters: Mapping[str, Any]) -> None:
    """Puts an executed notebook in order, in its file.

    papermill leaves the parameters as they were written and adds a cell that overrides them; here they are one again.
    What progress bars wrote to the output is taken out: every refresh is a line of its own there, the first at 0 %.
    """
    notebook = nbformat.read(path, 4)
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = filled(cell.source, parameters)
        cell.outputs = joined(cell.outputs)
        for output in (output for output in cell.outputs if output.get("name") == "stderr"):
            output.text = without_progress(output.text)
        cell.outputs = [output for output in cell.outputs if output.get("text") != ""]
    nbformat.write(notebook, path)


def filled(source: str, parameters: Mapping[str, Any]) -> str:
    """A cell of assignments with other values; their comments stay. Parameters that it lacks come at its end."""
    lines, left = source.encode().splitlines(), dict(parameters)  # bytes: `ast` counts them
    for node in reversed(ast.parse(source).body):  # from the end: what comes before keeps its place
        if isinstance(node, ast.Assign) and node.targets[0].id in left:
            value, first, last = node.value, node.value.lineno - 1, node.value.end_lineno - 1
            new = lines[first][: value.col_offset] + repr(left.pop(node.targets[0].id)).encode()
            lines[first : last + 1] = [new + lines[last][value.end_col_offset :]]
    return "\n".join([*map(bytes.decode, lines), *(f"{name} = {value!r}" for name, value in left.items())])
