"""Pictures that a person can read."""
