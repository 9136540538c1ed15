"""What ``scripts/benchmark.py`` measures, a subject or two per file."""
