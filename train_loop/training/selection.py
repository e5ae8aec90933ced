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


def best_step(evaluations, metric):
    """Returns the step of the best evaluation, the first of several.

    Args:
      evaluations: dicts with "step" and metrics, in order, as they stand in
        `metrics.jsonl`.
      metric: row of `MORE_IS_BETTER`.

    Returns:
      None where nothing was evaluated.
    """
    if not evaluations:
        return None
    sign = 1 if MORE_IS_BETTER[metric] else -1
    return max(evaluations, key=lambda record: sign * record[metric])["step"]


def evaluations_since_best(evaluations, metric, begin=0):
    """Returns how many evaluations came after the best one.

    Args:
      evaluations: see `best_step`.
      metric: row of `MORE_IS_BETTER`.
      begin: a step; only evaluations after it count.
    """
    if not evaluations:
        return 0
    begin = max(begin, best_step(evaluations, metric))
    return sum(record["step"] > begin for record in evaluations)
