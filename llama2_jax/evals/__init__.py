"""Measuring models: held-out loss, samples, tasks."""
