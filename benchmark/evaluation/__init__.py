"""From a checkpoint to results: kinds of tasks, evaluation sets, metrics, predictions, uncertainty."""
