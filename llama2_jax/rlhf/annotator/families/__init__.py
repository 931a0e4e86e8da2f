"""The kinds of prompts of the simulated world, one file each (B0 of the specification)."""
