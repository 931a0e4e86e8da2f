"""Loss functions over plain arrays."""
