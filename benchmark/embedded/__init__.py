"""The embedded pool of scales `nano` and `pico`: a synthetic world, its noise, evaluation sets and reference models."""
