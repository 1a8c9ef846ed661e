"""Small companions of the embedded model: adapters and networks trained beside it, in the community's
formats. `scripts/train_companions.py` runs them."""
