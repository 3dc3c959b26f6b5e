"""The science: hierarchical variational autoencoders, their objectives, measures and pictures."""
