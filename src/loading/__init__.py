"""What a step gets: examples of a data source as batches of tensors, and features computed once."""
