"""The plugin's nodes in a graph: layers folded into one, and written out again as a reference."""
