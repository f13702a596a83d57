"""The network on a GPU: fused kernels and recorded graphs, equal to the plain network up to rounding."""
