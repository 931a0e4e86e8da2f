"""Sampling, cached decoding, and scoring of given tokens."""
