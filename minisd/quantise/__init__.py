"""Weights in few bits: how they are stored, and which of a network's are left as they are. Tensors and names;
nothing of files or layers."""
