"""Programs, one file per stage: read them top to bottom."""
