"""The training loop: plain torch, wrapped by Ray Train."""
