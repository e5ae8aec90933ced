"""The best evaluation of a run so far, and whether it still gets better.

Read from the run's records, so that a restart changes nothing.
"""

# Metric of an evaluation -> whether more of it is better.
MORE_IS_BETTER = {
    "accuracy": True,
    "loss": False,
    "ema_accuracy": True,
    "ema_loss": False,
    "swa_accuracy": True,
    "swa_loss": False,
}


def best_step(records, metric):
    """Returns the step of the best evaluation, the first of several.

    Args:
      records: dicts with "step", "split" and metrics, in order, as they stand
        in `metrics.jsonl`.
      metric: row of `MORE_IS_BETTER`.

    Returns:
      None where nothing was evaluated.
    """
    evaluations = _evaluations(records)
    if not evaluations:
        return None
    sign = 1 if MORE_IS_BETTER[metric] else -1
    return max(evaluations, key=lambda record: sign * record[metric])["step"]


def evaluations_since_best(records, metric):
    """Returns how many evaluations came after the best one."""
    best = best_step(records, metric)
    return sum(record["step"] > best for record in _evaluations(records))


def _evaluations(records):
    return [record for record in records if record["split"] == "eval"]
