"""The networks in PyTorch, and the learner that trains them."""
