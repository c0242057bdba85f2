"""The kinds of plot in the paper, one per file: `table` makes the numbers of a panel, `draw` puts them on axes.

A table is None where a result that it needs has not been computed yet.
"""
