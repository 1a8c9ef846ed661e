"""The networks: modules that know tensors and configs, nothing of files, prompts or devices.

Parameter names are those of the published checkpoints. Constructors take configs only and compute no data:
build under `torch.device("meta")`, then `load_state_dict(sd, strict=True, assign=True)`.
"""
