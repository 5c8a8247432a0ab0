"""A grid of cells, run here or on a Ray cluster into one shared place."""
