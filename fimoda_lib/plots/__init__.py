"""How are the numbers of a panel made and drawn, one kind of plot per file?

`table` makes the numbers of a panel, `draw` puts them on axes.

A table is None where a result that it needs has not been computed yet.
"""
