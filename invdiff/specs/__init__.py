"""What users write as text: declared parameters, specs such as "gaussian_blur:sigma=2", registries, settings files."""
