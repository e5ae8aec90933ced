"""Which value of a setting wins, resolved before anything is built.

defaults <- recipe <- what the weights are of, and were trained with
         <- the run's own file <- explicit values
"""

import difflib
import os
from dataclasses import fields, replace

from resnet_layers import Normalization, find_weights
from train_loop.data.datasets import DATASETS
from train_loop.data.decode import INTERPOLATIONS
from train_loop.errors import UserError, check_choice, first_few
from train_loop.recipes import OTHERS, RECIPES, RENAMED, current_name
from train_loop.settings import Settings, default_values, to_text
from train_loop.training.optimizers import OPTIONS, options_of
from train_loop.training.update import AVERAGES
from train_loop.workdir import Workdir

# Of a run, and of what is asked of the modes that ask for more.
DEFAULTS = Settings(**default_values())
MODE_DEFAULTS = Settings(**default_values(of_modes=True))
# Fields of `Preprocessing`, from the texts in `flags.txt`.
PREPROCESSING_FLAGS = {
    "normalization": Normalization.of_text,
    "image_size": int,
    "crop_fraction": float,
    "interpolation": str,
}


def resolve(given):
    """Fills in everything that was not given, before anything is built.

    Args:
      given: `Settings`, some of them.

    Returns:
      `Settings` without gaps, but for those that mean something by None.

    Raises:
      UserError: an existing run was made with another value, or one of the
        values is not possible beside the others.
    """
    given = replace(given, recipe=current_name(given.recipe))
    given = _with_full_paths(given)
    earlier = Settings()
    if given.workdir is not None:
        workdir = Workdir.of(given.workdir)
        if not workdir.is_run:
            # Whoever writes to a run finds out whether that is possible.
            workdir.check_writable()
        earlier = Settings.read(workdir.flags)
        recipe = RENAMED.get(earlier.recipe, earlier.recipe)
        earlier = replace(earlier, recipe=recipe)
        if earlier.recipe not in (None, *RECIPES):
            print(
                f"warning: {workdir.flags}: --recipe={earlier.recipe}: no "
                "longer a recipe, ignored; the settings it had stay"
            )
            earlier = replace(earlier, recipe=None)
        _check_compatible(given, earlier)
    if given.recipe == "auto":
        # Of an existing run, its own; of a new one, it is the default.
        given = replace(given, recipe=None)
    known = given.over(earlier)
    if given.epochs is not None and given.steps is None:
        # Not those that the run was planned for.
        known = replace(known, steps=None)
    dataset = known.dataset or DEFAULTS.dataset
    recipe = known.recipe or DEFAULTS.recipe
    check_choice("--recipe", recipe, ["auto", *RECIPES])
    if recipe == "auto":
        recipe = dataset if dataset in RECIPES else OTHERS
    base = RECIPES[recipe].settings.over(DEFAULTS)
    base = _for_optimizer(known, base, recipe)
    if not earlier.given and (known.weights or base.weights):
        base = _from_weights(known, base).over(base)
    resolved = replace(known, recipe=recipe).over(base)
    _check_unfreezing(resolved)
    _check_average(resolved)
    _check_effective(given, base, resolved)
    return _resolve_embeddings(resolved, is_augmented=bool(given.augment))


def check_run_or_new(given):
    """Finds a mistyped --workdir out before it becomes a run of the default.

    Args:
      given: `Settings`, some of them.

    Raises:
      UserError: the workdir that is given is no run, and nothing that is
        given says what a new one would be of.
    """
    if given.workdir is None or Workdir.of(given.workdir).is_run:
        return
    says_something = (
        field.metadata["fixed"] and field.name in given.given
        for field in fields(Settings)
    )
    if any(says_something):
        return
    workdir = Workdir.of(given.workdir)
    runs = {path.name: str(path) for path in workdir.runs_beside()}
    near = difflib.get_close_matches(workdir.path.name, runs, n=3)
    names = [runs[name] for name in near or runs]
    hint = f"There {'is' if len(names) == 1 else 'are'} {first_few(names)}. "
    raise UserError(
        f"{workdir} is no run that could go on. {hint if names else ''}To "
        "start one there, say on which images: --dataset=digits, for example"
    )


def locate_weights(settings):
    """Returns the `resnet_layers.WeightsInfo` of --weights."""
    try:
        found = find_weights(settings.weights, settings.model)
        return _with_flags_beside(found)
    except ValueError as error:
        raise UserError(f"--weights={settings.weights}: {error}") from error


def _with_flags_beside(found):
    """Returns a `WeightsInfo` with what only the `flags.txt` of a run says.

    So it is of runs whose `config.json` names no architecture.
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
    """Returns {name: text} of the `flags.txt` of a run, {} without one.

    Args:
      path: a `pathlib.Path` of the run's folder, of its checkpoints, of one of
        them, or of another file in it.
    """
    for folder in (path, *path.parents[:2]):
        flags = folder / "flags.txt"
        if flags.is_file():
            # A damaged one is read as far as possible.
            text = flags.read_bytes().decode(errors="replace")
            # Other ends of lines may be in the names of files.
            lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
            pairs = (line.removeprefix("--").partition("=") for line in lines)
            return {name: text for name, _, text in pairs}
    return {}


def _with_full_paths(given):
    """Lets whoever goes on with the run stand in another folder."""
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
    """Raises UserError where an existing run was made with another value."""
    if not earlier.given:
        return
    for field in fields(Settings):
        value = getattr(given, field.name)
        made_with = getattr(earlier, field.name)
        if field.name == "dataset" and _are_paths(value, made_with):
            # It may have been moved. Whether it is the same one, its contents
            # will tell.
            continue
        if field.metadata["fixed"] and value not in (None, "auto", made_with):
            way = f"one from its weights: --weights={given.workdir}"
            if field.name in ("model", "weights"):
                way = "a new one"
            made = f"with --{field.name}={to_text(made_with)}"
            if made_with is None:
                made = f"without --{field.name}"
            raise UserError(
                f"{given.workdir} is a run {made}, and --{field.name}="
                f"{to_text(value)} was given; leave the flag out to go on with "
                f"that run, or name another --workdir for {way}"
            )
    if (
        given.augment
        and earlier.cached_embeddings
        and earlier.unfreeze_after_epochs is None
    ):
        raise UserError(
            f"{given.workdir} is a run on embeddings, made once of images as "
            "they are, and --augment was given; leave the flag out to go on "
            "with that run, or name another --workdir for one from its "
            f"weights: --weights={given.workdir}"
        )


def _are_paths(*datasets):
    """Whether data sets are files and folders, not names from a table."""
    return all(name is not None and os.path.isabs(name) for name in datasets)


def _for_optimizer(known, base, recipe):
    """Returns a recipe's settings, as far as they are for the optimizer.

    Raises:
      UserError: an option is given that the optimizer does not take, or an
        optimizer without a rate of its own.
    """
    name = known.optimizer or base.optimizer
    takes = options_of(name)
    for option in OPTIONS:
        if getattr(known, option) is not None and option not in takes:
            raise UserError(
                f"--{option}={getattr(known, option)} is not for --optimizer="
                f"{name}, which takes {', '.join(f'--{o}' for o in takes)}; "
                "leave it out, or take another optimizer"
            )
    if name == base.optimizer:
        return base
    if known.learning_rate is None:
        raise UserError(
            f"--optimizer={name} needs a --learning_rate: {base.learning_rate} "
            f"is what the recipe {recipe} has for {base.optimizer}"
        )
    return replace(base, base_batch_size=None, **dict.fromkeys(OPTIONS))


def _from_weights(known, base):
    """Returns the settings that weights bring along, so far as known.

    Those of a recipe are of its model, if nothing else is given.
    """
    if known.weights is None:
        known = replace(
            known, weights=base.weights, model=known.model or base.model
        )
    _, model, found = locate_weights(known)
    if known.model is not None and model not in (None, known.model):
        raise UserError(
            f"--weights={known.weights} are of {model}, and --model="
            f"{known.model} was given; leave the flag out, or name other "
            "weights"
        )
    if found.interpolation not in (None, *INTERPOLATIONS):
        if known.interpolation is None:
            raise UserError(
                f"--weights={known.weights} were trained with interpolation "
                f"{found.interpolation}, which is none of "
                f"{', '.join(INTERPOLATIONS)}; choose one of these with "
                "--interpolation"
            )
        found = found._replace(interpolation=None)
    # Orientation is a property of the images, not of the weights.
    found = found._replace(exif_orientation=None)
    channels = found.normalization and len(found.normalization.mean)
    return Settings(model=model, channels=channels, **found._asdict())


def _check_unfreezing(settings):
    """Raises UserError where there is nothing, or no time, to unfreeze."""
    if settings.unfreeze_after_epochs is not None and settings.freeze == "none":
        raise UserError(
            f"--unfreeze_after_epochs={settings.unfreeze_after_epochs:g} needs "
            "something frozen: name it, such as --freeze=backbone"
        )
    if settings.unfrozen_learning_rate is None:
        return
    if settings.unfreeze_after_epochs is None:
        raise UserError(
            f"--unfrozen_learning_rate={settings.unfrozen_learning_rate:g}: "
            "requires --unfreeze_after_epochs. Add it, or use --learning_rate."
        )


def _check_average(settings):
    """Raises UserError where an average is to decide that there is none of."""
    kind = settings.keep_best.partition("_")[0]
    if kind in AVERAGES and kind != settings.weight_average:
        raise UserError(
            f"--keep_best={settings.keep_best} is of an average, and this run "
            f"has --weight_average={settings.weight_average}; take "
            f"--weight_average={kind}, or "
            "another metric"
        )


def _check_effective(given, base, resolved):
    """Raises UserError where something is given that nothing uses."""
    for name, needed, value in (
        ("ema_decay", "weight_average", "ema"),
        ("max_rollbacks", "on_nonfinite", "rollback"),
    ):
        wanted, actual = getattr(given, name), getattr(resolved, needed)
        # What a file of flags repeats was given by nobody.
        if wanted not in (None, getattr(base, name)) and actual != value:
            raise UserError(
                f"--{name}={wanted} is for --{needed}={value}, and this run "
                f"has --{needed}={actual}; leave it out, or take that"
            )


def _resolve_embeddings(settings, is_augmented):
    """Decides whether embeddings are cached.

    Those of augmented images would differ every time. What is unfrozen later
    sees augmented images then.
    """
    is_frozen = settings.freeze == "backbone"
    thaws = settings.unfreeze_after_epochs is not None
    cached = settings.cached_embeddings
    if cached is None:
        cached = is_frozen and not is_augmented
    if not cached:
        return replace(settings, cached_embeddings=False)
    if not is_frozen or (is_augmented and not thaws):
        raise UserError(
            "--cached_embeddings needs --freeze=backbone and no --augment: "
            "what the backbone makes of an image must stay the same"
        )
    augment = settings.augment if thaws else ()
    return replace(settings, cached_embeddings=True, augment=augment)
