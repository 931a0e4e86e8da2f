"""Tasks for lm_eval that it does not have in the paper's form: the YAML files here, and what they call."""

from pathlib import Path

FOLDER = Path(__file__).parent
"""For ``lm_eval.tasks.TaskManager(include_path=...)``."""
