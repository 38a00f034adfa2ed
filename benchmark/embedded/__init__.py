"""The embedded pool of scales `nano` and `pico`: a drawn world, its noise, evaluation sets and reference models."""
