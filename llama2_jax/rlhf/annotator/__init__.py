"""Who compares two answers: simulated people, a model, or people through a file (PREF-1..6, PREF-11)."""
