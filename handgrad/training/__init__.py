"""The loop, and what it counts, records and saves: the half that every backend shares."""
