"""Resolution of settings, before anything is built.

The last one wins: defaults, recipe, weights (their model and preprocessing),
`flags.txt` of an existing run, explicit settings.
"""

import difflib
import os
from dataclasses import fields, replace

from resnet_layers import VARIANTS, Normalization, find_weights
from train_loop.data.datasets import DATASETS
from train_loop.data.decode import INTERPOLATIONS
from train_loop.errors import UserError, check_choice, first_few
from train_loop.recipes import (
    FINETUNE,
    GENERIC,
    RECIPES,
    RENAMED,
    REPLACED_BY_FINETUNE,
    current_name,
)
from train_loop.settings import Settings, default_values, to_text
from train_loop.training.optimizers import OPTIONS, options_of
from train_loop.training.update import AVERAGES
from train_loop.workdir import Workdir

# Of a run's settings, and of those of some modes.
DEFAULTS = Settings(**default_values())
MODE_DEFAULTS = Settings(**default_values(of_modes=True))
# Fields of `Preprocessing` in `flags.txt`, and how to read their text.
PREPROCESSING_FLAGS = {
    "normalization": Normalization.of_text,
    "image_size": int,
    "crop_fraction": float,
    "interpolation": str,
}


def resolve(given):
    """Returns explicit settings with all others filled in.

    Args:
      given: explicit `Settings`.

    Returns:
      `Settings`; None remains where it has a meaning, and in a new run for
      what the recipe sets by the size of the data set (see
      `resolve_by_size`).

    Raises:
      UserError: a fixed setting of an existing run differs, or settings
        cannot be combined.
    """
    given = replace(given, recipe=current_name(given.recipe))
    given = _with_full_paths(given)
    earlier = Settings()
    if given.workdir is not None:
        workdir = Workdir.of(given.workdir)
        if not workdir.is_run:
            # Evaluation of an existing run may only need to read.
            workdir.check_writable()
        earlier = Settings.read(workdir.flags)
        recipe = RENAMED.get(earlier.recipe, earlier.recipe)
        earlier = replace(earlier, recipe=recipe)
        if earlier.recipe not in (None, *RECIPES):
            print(
                f"warning: {workdir.flags}: --recipe={earlier.recipe}: "
                "removed recipe, ignored. The run keeps its settings."
            )
            earlier = replace(earlier, recipe=None)
        _check_compatible(given, earlier)
    if given.recipe == "auto":
        # An existing run keeps its own.
        given = replace(given, recipe=None)
    known = given.over(earlier)
    if given.epochs is not None and given.steps is None:
        # Explicit epochs override the steps of the existing run.
        known = replace(known, steps=None)
    dataset = known.dataset or DEFAULTS.dataset
    recipe = known.recipe or DEFAULTS.recipe
    check_choice("--recipe", recipe, ["auto", *RECIPES])
    if recipe == "auto":
        recipe = dataset if dataset in RECIPES else GENERIC
        if known.weights and recipe in REPLACED_BY_FINETUNE:
            recipe = FINETUNE
    base = RECIPES[recipe].settings
    base = base.over(_of_model(known.model or base.model)).over(DEFAULTS)
    base = replace(base, **dict.fromkeys(RECIPES[recipe].names_by_size))
    base = _for_optimizer(known, base, recipe)
    if not earlier.given and (known.weights or base.weights):
        base = _from_weights(known, base).over(base)
    resolved = replace(known, recipe=recipe).over(base)
    _check_unfreezing(resolved)
    _check_average(resolved)
    _check_effective(given, base, resolved)
    return _resolve_embeddings(resolved, is_augmented=bool(given.augment))


def resolve_by_size(settings, num_images):
    """Returns settings with what the recipe sets by the size of the data set.

    Args:
      settings: `Settings` of `resolve`.
      num_images: number of training images.
    """
    values = RECIPES[settings.recipe].for_size(num_images)
    return settings.over(Settings(**values))


def check_run_or_new(given):
    """Finds a mistyped --workdir before it becomes a run on the default data.

    Args:
      given: explicit `Settings`.

    Raises:
      UserError: --workdir is not an existing run, and no setting describes a
        new one.
    """
    if given.workdir is None or Workdir.of(given.workdir).is_run:
        return
    describes_run = (
        field.metadata["fixed"] and field.name in given.given
        for field in fields(Settings)
    )
    if any(describes_run):
        return
    workdir = Workdir.of(given.workdir)
    runs = {path.name: str(path) for path in workdir.runs_beside()}
    near = difflib.get_close_matches(workdir.path.name, runs, n=3)
    names = [runs[name] for name in near or runs]
    hint = f" Runs beside it: {first_few(names)}." if names else ""
    raise UserError(
        f"--workdir={workdir}: not an existing run.{hint} Pass one, or add "
        "--dataset to start a run there, such as --dataset=digits."
    )


def locate_weights(settings):
    """Returns the `resnet_layers.WeightsInfo` of --weights."""
    try:
        found = find_weights(settings.weights, settings.model)
        return _with_flags_beside(found)
    except ValueError as error:
        raise weights_error(settings.weights, error) from error


def weights_error(weights, error):
    """Returns the UserError of a `ValueError` about the value of --weights."""
    reason = str(error).removeprefix(f"{weights}: ")
    return UserError(f"--weights={weights}: {reason}")


def _with_flags_beside(found):
    """Returns a `WeightsInfo` completed from the `flags.txt` of a run.

    For runs whose `config.json` has no architecture.
    """
    flags = {} if found.variant else flags_beside(found.path)
    if not flags:
        return found
    preprocessing = found.preprocessing._replace(
        **{
            field: read(flags[field])
            for field, read in PREPROCESSING_FLAGS.items()
            if field in flags
        }
    )
    normalization = preprocessing.normalization
    if "channels" in flags and normalization is not None:
        normalization = normalization.for_channels(int(flags["channels"]))
        preprocessing = preprocessing._replace(normalization=normalization)
    return found._replace(
        variant=flags.get("model"), preprocessing=preprocessing
    )


def flags_beside(path):
    """Returns {name: text} of the `flags.txt` of a run; {} without one.

    Args:
      path: `pathlib.Path` of the run's folder, its checkpoints, a checkpoint
        or another file in it.
    """
    for folder in (path, *path.parents[:2]):
        flags = folder / "flags.txt"
        if flags.is_file():
            # A damaged file is read as far as possible.
            text = flags.read_bytes().decode(errors="replace")
            # Other line separators may be in the names of files.
            lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
            pairs = (line.removeprefix("--").partition("=") for line in lines)
            return {name: text for name, _, text in pairs}
    return {}


def _with_full_paths(given):
    """Makes paths absolute: a run may resume from another folder."""
    paths = {}
    for name, names in (
        ("dataset", DATASETS),
        ("weights", ("imagenet",)),
        ("data_dir", None),
        ("manual_dir", None),
    ):
        value = getattr(given, name)
        path = value and os.path.abspath(os.path.expanduser(value))
        if path and (
            names is None or (value not in names and os.path.exists(path))
        ):
            paths[name] = path
    return replace(given, **paths)


def _check_compatible(given, earlier):
    """Raises UserError if a fixed setting of an existing run differs."""
    if not earlier.given:
        return
    for field in fields(Settings):
        value = getattr(given, field.name)
        made_with = getattr(earlier, field.name)
        if field.name == "dataset" and _are_paths(value, made_with):
            # It may have been moved; its content is compared later.
            continue
        if field.metadata["fixed"] and value not in (None, "auto", made_with):
            new_run = f" with --weights={given.workdir}"
            if field.name in ("model", "weights"):
                new_run = ""
            made = f"has --{field.name}={to_text(made_with)}"
            if made_with is None:
                made = f"has no --{field.name}"
            raise UserError(
                f"--{field.name}={to_text(value)}: fixed on resume, and the "
                f"run {given.workdir} {made}. Remove the flag, or start a new "
                f"run in another --workdir{new_run}."
            )
    if (
        given.augment
        and earlier.cached_embeddings
        and earlier.unfreeze_after_epochs is None
    ):
        raise UserError(
            f"--augment: cannot be combined with the run {given.workdir}, "
            "which trains on cached embeddings. Remove the flag, or start a "
            f"new run in another --workdir with --weights={given.workdir}."
        )


def _are_paths(*datasets):
    """Whether data sets are files and folders, not names from a table."""
    return all(name is not None and os.path.isabs(name) for name in datasets)


def _of_model(name):
    """Returns the default image size and crop of a model, as `Settings`."""
    if name not in VARIANTS:
        return Settings()
    preprocessing = VARIANTS[name].preprocessing
    return Settings(
        image_size=preprocessing.image_size,
        crop_fraction=preprocessing.crop_fraction,
    )


def _for_optimizer(known, base, recipe):
    """Returns a recipe's settings without those of another optimizer.

    Raises:
      UserError: the optimizer does not use an explicit option, or has no
        explicit learning rate.
    """
    name = known.optimizer or base.optimizer
    options = options_of(name)
    for option in OPTIONS:
        if getattr(known, option) is not None and option not in options:
            raise UserError(
                f"--{option}={getattr(known, option)}: cannot be combined with "
                f"--optimizer={name}, which uses "
                f"{', '.join(f'--{o}' for o in options)}. Remove it, or use "
                "another optimizer."
            )
    if name == base.optimizer:
        return base
    if known.learning_rate is None:
        raise UserError(
            f"--optimizer={name}: requires --learning_rate. That of the recipe "
            f"{recipe} is for {base.optimizer}; set one for {name}."
        )
    return replace(base, base_batch_size=None, **dict.fromkeys(OPTIONS))


def _from_weights(known, base):
    """Returns the settings that weights define, as far as known.

    The weights of a recipe belong to its model, unless --model is explicit.
    """
    if known.weights is None:
        known = replace(
            known, weights=base.weights, model=known.model or base.model
        )
    _, model, found = locate_weights(known)
    if known.model is not None and model not in (None, known.model):
        raise UserError(
            f"--model={known.model}: --weights={known.weights} are of {model}. "
            "Remove the flag, or use other weights."
        )
    if found.interpolation not in (None, *INTERPOLATIONS):
        if known.interpolation is None:
            raise UserError(
                f"--weights={known.weights}: trained with unsupported "
                f"interpolation {found.interpolation}. Set --interpolation to "
                f"{' or '.join(INTERPOLATIONS)}."
            )
        found = found._replace(interpolation=None)
    # Orientation belongs to the images, not to the weights.
    found = found._replace(exif_orientation=None)
    channels = found.normalization and len(found.normalization.mean)
    return Settings(model=model, channels=channels, **found._asdict())


def _check_unfreezing(settings):
    """Raises UserError if there is nothing, or no time, to unfreeze."""
    if settings.unfreeze_after_epochs is not None and settings.freeze == "none":
        raise UserError(
            f"--unfreeze_after_epochs={settings.unfreeze_after_epochs:g}: "
            "requires --freeze. Add it, such as --freeze=backbone."
        )
    if settings.unfrozen_learning_rate is None:
        return
    if settings.unfreeze_after_epochs is None:
        raise UserError(
            f"--unfrozen_learning_rate={settings.unfrozen_learning_rate:g}: "
            "requires --unfreeze_after_epochs. Add it, or use --learning_rate."
        )


def _check_average(settings):
    """Raises UserError if --keep_best uses an average that is not kept."""
    kind = settings.keep_best.partition("_")[0]
    if kind in AVERAGES and kind != settings.weight_average:
        raise UserError(
            f"--keep_best={settings.keep_best}: requires --weight_average="
            f"{kind}, not {settings.weight_average}. Change one of them."
        )


def _check_effective(given, base, resolved):
    """Raises UserError if an explicit setting has no effect."""
    for name, needed, value in (
        ("ema_decay", "weight_average", "ema"),
        ("max_rollbacks", "on_nonfinite", "rollback"),
    ):
        explicit, actual = getattr(given, name), getattr(resolved, needed)
        # A --flagfile repeats all settings, defaults too.
        if explicit not in (None, getattr(base, name)) and actual != value:
            raise UserError(
                f"--{name}={explicit}: requires --{needed}={value}, not "
                f"{actual}. Remove it, or add --{needed}={value}."
            )


def _resolve_embeddings(settings, is_augmented):
    """Decides whether embeddings are cached.

    Embeddings of augmented images would differ each time. Layers that are
    unfrozen later train on augmented images.
    """
    is_frozen = settings.freeze == "backbone"
    unfreezes = settings.unfreeze_after_epochs is not None
    cached = settings.cached_embeddings
    if cached is None:
        cached = is_frozen and not is_augmented
    if not cached:
        return replace(settings, cached_embeddings=False)
    if not is_frozen or (is_augmented and not unfreezes):
        raise UserError(
            "--cached_embeddings: requires --freeze=backbone without "
            "--augment, so that the embedding of an image never changes. "
            "Change one of them."
        )
    augment = settings.augment if unfreezes else ()
    return replace(settings, cached_embeddings=True, augment=augment)
