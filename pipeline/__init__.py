"""The stages of the pipeline: one thin module each, run as `python -m pipeline.<stage>`."""
