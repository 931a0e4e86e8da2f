"""Checkpoints of other projects, both directions where it makes sense."""
