"""Optimiser, step, loop, checkpoints, metrics."""
