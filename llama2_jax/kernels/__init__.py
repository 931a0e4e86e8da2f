"""Attention implementations behind one function."""
