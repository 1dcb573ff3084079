"""Parameters: typed, checked once, at the door."""
