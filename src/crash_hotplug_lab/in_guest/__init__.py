"""Programs that run inside a guest; they share what stands in watched.py."""
