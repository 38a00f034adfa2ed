"""From a subset to a checkpoint: order of samples, decoding, steps, ranks, health."""
