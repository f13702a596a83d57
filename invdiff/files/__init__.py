"""Images and arrays as files: reading them into tensors, and writing them whole or not at all."""
