"""How the model that ships inside minisd is made, one noun a file; `scripts/train_embedded.py` runs the
stages in order.

data -> pictures, captions -> vae -> latents -> diffusion -> export; sheets draws samples on the way.
"""
