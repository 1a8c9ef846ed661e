"""All benchmarks, one after the other: python -m scripts.bench. Nothing else should run meanwhile."""

from scripts.bench import cpu, loading, samplers, shortcuts, startup

if __name__ == "__main__":
    startup.main()
    loading.main()
    samplers.main([])
    shortcuts.main([])
    for dtype in ("float32", "bfloat16"):
        cpu.main(dtype)
