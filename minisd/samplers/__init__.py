"""Diffusion samplers as pure functions. Five nouns, kept apart:

schedule   which noise levels sigma are visited                  schedule.py
scaling    network output (eps, v, x0) to denoised picture       scaling.py
guidance   several denoised pictures to one                      minisd/guidance.py
solver     from one sigma to the next                            ode.py, sde.py; names in names.py
noise      where random numbers come from                        noise.py

Everything works in the variance-exploding form of Karras et al. 2022: x = z + sigma * n. A solver is
`sample_x(denoise, x, sigmas, *, noise=None, on_step=None) -> x`; `denoise(x, sigma)` already holds prompts
and guidance. Knows torch, nothing of models or prompts.
"""
