"""The model families, each in a folder of its own; they do not import one another."""
