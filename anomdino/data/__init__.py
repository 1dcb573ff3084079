"""Training data: outlier mixing and the composed set."""
