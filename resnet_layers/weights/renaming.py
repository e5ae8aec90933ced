"""Names of a file brought to those of its dialect: prefixes, classifiers."""

# Parts of names -> the models that have them.
STRANGERS = {
    "res2a_branch2a": (
        "Keras's ResNet-50 from before 2019, whose batch norms have another "
        "epsilon; the current file is --weights=imagenet"
    ),
    "layer0.conv1": "Cadene's pretrained models, of SENet's own layout",
    "block1.unit01": "Google's BiT; timm has the same weights",
    "patch_embed": "a vision transformer",
    "_blocks.0": "an EfficientNet",
    "denseblock1": "a DenseNet",
    "features.0": "a network that is no ResNet",
}


def rename(tensors, targets, dialect):
    """Returns ({name: `Stored`} as the dialect names them, notes about it).

    A prefix is stripped where everything fits without it. If a file has
    several whole copies, the average is used, known by "ema" in its prefix.
    The only matrix with a bias beside the backbone is the classifier. What
    does not fit stays as it is.

    Args:
      tensors: {name: `Stored`} of a file.
      targets: {name: `Target`} of a model.
      dialect: the `Dialect` of both.
    """
    body = [name for name in targets if not name.startswith(dialect.head)]
    prefixes = [
        prefix
        for prefix in _prefixes(tensors, body[0], dialect.separator)
        if all(prefix + name in tensors for name in body)
    ]
    averages = [prefix for prefix in prefixes if "ema" in prefix.lower()]
    chosen = averages if len(prefixes) > 1 else prefixes
    if len(chosen) != 1:
        return tensors, ()
    [prefix] = chosen
    others = tuple(other for other in prefixes if other != prefix)
    renamed = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix) or not name.startswith(others)
    }
    notes = [f"its names begin with {prefix}"] if prefix else []
    rest = {name: renamed[name] for name in renamed if name not in body}
    found = find_classifiers(rest, dialect)
    theirs = found[0] if len(found) == 1 else None
    heads = [name for name in targets if name not in body]
    # A model without a classifier has none of these names.
    ours = dialect.head[0]
    if heads:
        ours = heads[0].rpartition(dialect.separator)[0]
    if theirs not in (None, ours):
        for variable in (dialect.kernel, "bias"):
            old, new = (
                f"{layer}{dialect.separator}{variable}"
                for layer in (theirs, ours)
            )
            renamed[new] = renamed.pop(old)
        notes.append(f"its classifier is called {theirs}")
    return renamed, tuple(notes)


def kind_of(names):
    """Returns what names are known to be of, as the end of a sentence."""
    for part, kind in STRANGERS.items():
        if any(part in name for name in names):
            return f"; its names are those of {kind}"
    return ""


def find_classifiers(tensors, dialect):
    """Returns the names of the layers that can be the classifier.

    Args:
      tensors: {name: `Stored`}.
      dialect: the `Dialect` of their names.
    """
    found = []
    for name, tensor in tensors.items():
        layer, _, variable = name.rpartition(dialect.separator)
        bias = tensors.get(f"{layer}{dialect.separator}bias")
        if variable != dialect.kernel or bias is None:
            continue
        is_matrix = len(tensor.shape) == 2
        # A 1x1 convolution in timm's resnetv2.py; squeeze-and-excitation has
        # such ones too.
        if is_matrix or layer.endswith("head.fc"):
            found.append(layer)
    return found


def _prefixes(tensors, anchor, separator):
    """Returns what stands in front of a name wherever it is in a file."""
    return [
        name.removesuffix(anchor)
        for name in tensors
        if name == anchor or name.endswith(separator + anchor)
    ]
