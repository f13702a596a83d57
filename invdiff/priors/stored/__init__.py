"""Priors on disk and on the Hub: formats, loading, export, checks of what a checkpoint says of itself."""
