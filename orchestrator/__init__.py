"""The commands a person runs; the only package that knows datasets, trainables, search_spaces and cluster."""
