"""Finding checkpoints (bundled, in a folder, on the hub) and reading their tensors strictly."""
