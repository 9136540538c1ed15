"""Pictures of runs: files, pages and the terminal."""
