"""The configs that stand beside files of weights, as JSON."""

import contextlib
import json

from resnet_layers.weights.errors import one_line
from resnet_layers.weights.names import WeightsError


@contextlib.contextmanager
def config_beside(path, name):
    """Yields what a JSON file beside weights says, {} where there is none.

    Args:
      path: a `pathlib.Path` of the weights.
      name: of the JSON file.

    Raises:
      WeightsError: it is damaged. Whoever uses the content inside the `with`
        statement need not look at it first: that it is not what was expected
        is the same error.
    """
    config = path.with_name(name)
    try:
        text = config.read_text(encoding="utf-8") if config.is_file() else "{}"
        yield json.loads(text)
    except WeightsError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise WeightsError(
            f"{config} is damaged: {one_line(error)}; mend it, or move "
            f"{path.name} to a folder without it"
        ) from error
