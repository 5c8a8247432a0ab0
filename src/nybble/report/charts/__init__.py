"""The pictures of the report: one module each; a new one is a file and a line in `plots.py`."""
