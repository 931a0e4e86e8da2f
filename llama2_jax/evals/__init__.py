"""Measuring models: held-out loss, samples, judges, intervals."""
