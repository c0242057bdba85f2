"""Executed notebooks are put in order: one cell of parameters, no remains of progress bars."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from fimoda_lib.run.tidy import filled, tidy

BAR = "final model:   0%|          | 0.00/240 [00:00<?, ?step/s]"


@pytest.mark.parametrize(
    ("source", "parameters", "expected"),
    [
        ("n = 1  # how many", {"n": 20}, "n = 20  # how many"),
        ("n = 1\nm = 2", {}, "n = 1\nm = 2"),
        ("a = 'é'; b = 1  # é", {"b": [1, 2], "a": None}, "a = None; b = [1, 2]  # é"),
        ("names = [\n    'a',\n    'b',\n]  # some\nn = 1", {"names": ("c",), "n": 2}, "names = ('c',)  # some\nn = 2"),
        ("n = 1", {"other": "x"}, "n = 1\nother = 'x'"),
        ("n = n_seeds = 1\nn_seeds = 2", {"n_seeds": 3}, "n = n_seeds = 1\nn_seeds = 3"),
    ],
)
def test_parameters_are_filled_in_where_they_stand(source, parameters, expected):
    assert filled(source, parameters) == expected
    scope = {}
    exec(expected, scope)
    assert {name: scope[name] for name in parameters} == parameters


def test_an_executed_notebook_is_put_in_order(tmp_path):
    table = new_output("display_data", {"text/plain": "a table", "text/html": "<table>"})
    # papermill adds an output for every refresh of a bar
    bars = [new_output("stream", name="stderr", text=text) for text in (BAR, "\r" + BAR.replace("  0", "100"), "\n")]
    said = new_output("stream", name="stderr", text=BAR + "\nCG has not converged.\n")
    cells = [
        new_markdown_cell("# Title"),
        new_code_cell("n = 1  # of some", metadata={"tags": ["parameters"]}, execution_count=1),
        new_code_cell("# Parameters\nn = 5", metadata={"tags": ["injected-parameters"]}, execution_count=2),
        new_code_cell("work()", outputs=[*bars, table], execution_count=3),
        new_code_cell("more()", outputs=[said, new_output("stream", name="stdout", text="50%|of them|1/2 [it\n")]),
    ]
    path = tmp_path / "n.ipynb"
    nbformat.write(new_notebook(cells=cells, metadata={"papermill": {"parameters": {"n": 5}}}), path)
    for _ in range(2):  # once more changes nothing
        tidy(path, {"n": 5})
        found = nbformat.read(path, 4)
        title, parameters, work, more = found.cells
        assert (title.source, parameters.source) == ("# Title", "n = 5  # of some")
        assert work.outputs == [table] and work.execution_count == 3
        assert [o.text.strip() for o in more.outputs] == ["CG has not converged.", "50%|of them|1/2 [it"]
        assert found.metadata.papermill.parameters == {"n": 5}
