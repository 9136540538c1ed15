"""Code that is not ours: importing it, running it apart, and telling whose an error is."""
