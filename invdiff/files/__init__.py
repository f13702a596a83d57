"""Images and arrays as files: how bytes become tensors and tensors bytes, whole or not at all."""
