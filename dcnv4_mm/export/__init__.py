"""Export of models to files that run without this package."""
