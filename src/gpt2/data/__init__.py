"""Text files -> tokens -> (x, y) batches, for training."""
