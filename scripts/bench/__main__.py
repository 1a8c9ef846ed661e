"""All benchmarks, one after the other: python -m scripts.bench. Nothing else should run meanwhile."""

from scripts.bench import loading, startup, unet

if __name__ == "__main__":
    startup.main()
    loading.main()
    unet.main()
