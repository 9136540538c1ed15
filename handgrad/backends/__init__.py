"""What the training commands train, a file a network and library."""
