"""Command lines: each puts a backend and the shared half together."""
