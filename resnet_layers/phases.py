"""The phase, training or inference, on its way to the layers below."""


def in_phase(training):
    """Returns the keywords that hand a phase on to a layer: none for None.

    To Keras an explicit `training=None` is the caller's choice, and hides the
    phase of whatever model the call is a part of; a keyword left out does not.

        x = self.bn1(x, **in_phase(training))

    Args:
      training: true, false, or None where the caller did not say.
    """
    return {} if training is None else {"training": training}
