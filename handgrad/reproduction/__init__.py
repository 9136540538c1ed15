"""What ``scripts/reproduce.py`` runs, how, and what it writes of it."""
