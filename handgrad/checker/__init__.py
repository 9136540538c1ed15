"""What ``check-gradients`` is made of: find, guess, compare, diagnose, report."""
