"""What several operators compute with: transforms, kernels, boundaries, tables."""
