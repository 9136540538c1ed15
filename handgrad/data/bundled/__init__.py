"""Data that ship with the package; ``README.md`` beside this file names source and licence."""
