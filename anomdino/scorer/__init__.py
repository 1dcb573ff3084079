"""Pixel-wise anomaly scorers: networks, their training, and score maps of other methods."""
