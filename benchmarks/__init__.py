"""Speed, measured by hand and recorded: see README.md here."""
