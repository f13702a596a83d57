"""Reports of evaluation runs: one self-contained page, and plots and tables beside it. Nothing heavy is imported here."""
