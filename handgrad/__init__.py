"""Data, training, runs, checks and commands: everything around the hand-written layers."""
