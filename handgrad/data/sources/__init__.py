"""Where the images come from, a file a source."""
