"""Data, batches, the loop and the run folder: the half that every backend shares."""
