"""One rank of any layout in one process: a step on tensors without contents, for its shapes, bytes and messages."""
