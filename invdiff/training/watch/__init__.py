"""What is seen of a training while it runs: curves, plots, sample pictures, validation."""
