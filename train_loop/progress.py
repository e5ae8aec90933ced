"""Progress bars for long work, on standard error, where it is a terminal."""

import tqdm


def progress_bar(
    total, initial=0, unit="step", description="", leave=True, delay=0.0
):
    """Returns a progress bar with rate and time left.

    Args:
      total: number of steps or batches altogether.
      initial: how many of them are done already.
      unit: what is counted.
      description: what stands in front of it.
      leave: whether the bar stays after the last step.
      delay: seconds to wait before the bar is shown at all.

    Returns:
      A `tqdm` progress bar.
    """
    return tqdm.tqdm(
        total=total,
        initial=initial,
        unit=unit,
        desc=description,
        leave=leave,
        delay=delay,
        dynamic_ncols=True,
        # None: on a terminal only. A log has the reports.
        disable=None,
    )


def passing_bar(total, unit, description=""):
    """Returns a bar for work on the way, shown only where that takes long."""
    return progress_bar(
        total, unit=unit, description=description, leave=False, delay=2.0
    )
