"""Reports as files: tables as text, Markdown, LaTeX, CSV and HTML, and HTML pages that load nothing else."""
