"""Kernels for CPUs with AVX-512, in C++ that is compiled on this machine when one is first asked for by name.

    minisd txt2img "a castle" --kernels avx512

Attention in bfloat16 takes less than half the time of torch's here, because torch's packs for AMX alone;
norms with what stands beside them are one pass over memory. Results are as near to float64 as torch's own,
and the bits depend neither on the batch nor on the number of threads. `build.py` compiles and loads (it needs
a C++ compiler, three seconds once), `calls.py` are the operations, the sources stand beside them.
"""
