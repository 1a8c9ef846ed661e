"""The laboratory: what a kernel computes, what it takes, how fast it is, and what it does to a picture.

Faces: `minisd kernels list | check | bench | trace`. Not needed to draw; knows models, so it stands beside
`minisd.kernels`, which does not.
"""
