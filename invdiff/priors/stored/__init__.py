"""Priors on disk and on the Hugging Face hub: formats, loading, export, and a check of what a checkpoint states."""
