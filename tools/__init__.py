"""Offline helpers, run as ``python -m tools.NAME``; the library never imports them."""
