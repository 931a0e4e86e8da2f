"""The kinds of prompts of the simulated world, one file each."""
