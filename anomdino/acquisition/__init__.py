"""Getting data and weights: registry, safe downloads and archives, and the layouts that readers expect."""
