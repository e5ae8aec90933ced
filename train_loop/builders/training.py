"""Settings -> strategy, trainer, checkpoints, and the cadence of a run."""

import functools
import os

import tensorflow as tf

from train_loop import process
from train_loop.builders.model import freeze, unfreeze
from train_loop.data import check
from train_loop.errors import UserError
from train_loop.settings import scaled_learning_rate
from train_loop.training.checkpoints import (
    Checkpoints,
    Evaluations,
    SkippedBatches,
)
from train_loop.training.loop import Cadence
from train_loop.training.losses import (
    CLASS_WEIGHTS,
    LOSSES,
    PRESENCE_THRESHOLD,
    weighted,
)
from train_loop.training.optimizers import OPTIMIZERS, options_of
from train_loop.training.reports import NO_PROFILE, Profile
from train_loop.training.schedules import TwoPhases
from train_loop.training.strategies import STRATEGIES, split_cpu
from train_loop.training.trainer import Trainer
from train_loop.training.update import AVERAGES, Average, LossScale, Update


def build_strategy(settings):
    """Returns the `tf.distribute.Strategy` of a run.

    Raises:
      UserError: the devices are not available or cannot split a batch evenly,
        or several workers have no common folder.
    """
    if settings.strategy == "multi_worker" and settings.workdir is None:
        raise UserError(
            "--strategy=multi_worker: requires --workdir. Pass all workers the "
            "same --workdir, on a shared disk."
        )
    if settings.virtual_devices:
        split_cpu(settings.virtual_devices)
    if settings.deterministic:
        tf.config.experimental.enable_op_determinism()
    if "bfloat16" in settings.precision and process.amx_was_masked():
        print(process.AMX_NOTE)
    strategy = STRATEGIES[settings.strategy](settings.cluster)
    replicas, batch_size = strategy.num_replicas_in_sync, settings.batch_size
    micro_batches = replicas * settings.gradient_accumulation_steps
    if batch_size % micro_batches:
        below = batch_size // micro_batches * micro_batches
        sizes = [size for size in (below, below + micro_batches) if size]
        reason = f"{replicas} replicas"
        if settings.gradient_accumulation_steps > 1:
            reason += (
                f" with {settings.gradient_accumulation_steps} micro-batches "
                "each"
            )
        raise UserError(
            f"--batch_size={batch_size}: must be a multiple of "
            f"{micro_batches}, for {reason}. Try "
            f"{' or '.join(f'--batch_size={size}' for size in sizes)}."
        )
    return strategy


def check_memory(settings):
    """Raises UserError if not even the images of a step fit in memory."""
    size, batch_size = settings.image_size, settings.batch_size
    # As bytes, and as float32.
    needed = batch_size * size * size * 3 * (1 + 4)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise UserError(
            f"--batch_size={batch_size}: a batch of --image_size={size} "
            f"requires {needed / 1e9:,.0f} GB for its images, and this machine "
            f"has {memory / 1e9:,.0f} GB of memory. Use a smaller --batch_size "
            "or --image_size."
        )


def build_trainer(settings, data, classifier, strategy):
    """Returns the `Trainer` of a classifier, at step 0."""
    model, factor = classifier.model, settings.backbone_lr_factor
    variables = _ever_trainable(settings, model)
    head_paths = {variable.path for variable in model.head.variables}
    factors = {
        variable.path: factor
        for variable in variables
        if variable.path not in head_paths and factor != 1
    }
    options = {
        option: getattr(settings, option)
        for option in options_of(settings.optimizer)
        if getattr(settings, option) is not None
    }
    optimizer = OPTIMIZERS[settings.optimizer](
        _learning_rates(settings, data),
        settings.weight_decay,
        factors,
        **options,
    )
    last_frozen = last_frozen_step(settings, data)
    starts = {
        variable.path: last_frozen
        for variable in variables
        if not variable.trainable
    }
    # Built for the variables of both phases, so that checkpoints of both have
    # the same variables.
    optimizer.build(variables, starts)
    return Trainer(
        model,
        optimizer,
        strategy,
        training_loss(settings, data),
        LOSSES[settings.loss],
        forward=classifier.logits,
        update=_make_update(settings, data, model),
    )


def _ever_trainable(settings, model):
    """Returns the variables that are trained from the start or later."""
    if settings.unfreeze_after_epochs is None:
        return model.trainable_variables
    unfreeze(settings, model)
    variables = model.trainable_variables
    freeze(settings, model)
    return variables


def _learning_rates(settings, data):
    """Returns the learning-rate schedule of a run, of one phase or two."""
    per_epoch = steps_per_epoch(settings, data)

    def schedule(peak, steps, begun=0):
        return settings.schedule.rates(
            peak,
            # At most half of a short run is warm-up.
            min(round(settings.warmup_epochs * per_epoch), steps // 2),
            steps,
            per_epoch,
            begun,
        )

    steps = num_steps(settings, data)
    last_frozen = last_frozen_step(settings, data)
    peak = scale_to_batch_size(settings, settings.learning_rate)
    if last_frozen is None:
        return schedule(peak, steps)
    unfrozen = scale_to_batch_size(settings, unfrozen_learning_rate(settings))
    return TwoPhases(
        schedule(peak, last_frozen),
        schedule(unfrozen, steps - last_frozen, last_frozen),
        last_frozen,
    )


def scale_to_batch_size(settings, learning_rate):
    """Returns the learning rate, scaled to the batch size."""
    return scaled_learning_rate(
        learning_rate, settings.batch_size, settings.base_batch_size
    )


def unfrozen_learning_rate(settings):
    """Returns the peak learning rate of the second phase."""
    if settings.unfrozen_learning_rate is None:
        return settings.learning_rate / 10
    return settings.unfrozen_learning_rate


def last_frozen_step(settings, data):
    """Returns the last step before unfreezing; None without unfreezing.

    Raises:
      UserError: one of the two phases has no step.
    """
    if settings.unfreeze_after_epochs is None:
        return None
    steps = num_steps(settings, data)
    step = round(
        settings.unfreeze_after_epochs * steps_per_epoch(settings, data)
    )
    if not 0 < step < steps:
        raise UserError(
            f"--unfreeze_after_epochs={settings.unfreeze_after_epochs:g}: must "
            "leave training steps before and after it, and is step "
            f"{step} of {steps}. Pass another number of epochs, or train "
            "longer with --epochs or --steps."
        )
    return step


def training_loss(settings, data):
    """Returns the training loss, a function like `losses.cross_entropy`.

    Raises:
      UserError: smoothed labels would no longer distinguish the classes.
    """
    loss = LOSSES[settings.loss]
    if settings.loss == "sigmoid":
        _check_smoothing(settings.label_smoothing, len(data.class_names))
    make_weights = CLASS_WEIGHTS[settings.class_weights]
    if make_weights is not None:
        counts = check.count_labels(data.train, "train")
        labels = range(len(data.class_names))
        weights = make_weights([counts.get(label, 0) for label in labels])
        loss = weighted(loss, weights)
    return functools.partial(loss, label_smoothing=settings.label_smoothing)


def _check_smoothing(factor, num_classes):
    """Raises UserError if smoothing hides whether a class is present."""
    others = num_classes / (num_classes - 1)
    limit = min(
        PRESENCE_THRESHOLD * num_classes, (1 - PRESENCE_THRESHOLD) * others
    )
    if factor >= limit:
        raise UserError(
            f"--label_smoothing={factor:g}: with --loss=sigmoid and "
            f"{num_classes:,} classes, must be less than {limit:.3g}. Try "
            "--label_smoothing=0.1."
        )


def _make_update(settings, data, model):
    """Returns the `Update`: how batches change the weights of a model."""
    average = loss_scale = None
    if settings.weight_average != "none":
        steps = num_steps(settings, data)
        coefficient = AVERAGES[settings.weight_average](
            settings.ema_decay, steps
        )
        average = Average(model, coefficient, settings.weight_average)
    if "float16" in settings.precision.split("_"):
        loss_scale = LossScale()
    return Update(
        settings.gradient_accumulation_steps,
        settings.clip_norm,
        average,
        loss_scale,
        _is_compiled(settings),
    )


def _is_compiled(settings):
    """Whether XLA compiles the step."""
    has_accelerator = any(map(tf.config.list_logical_devices, ("GPU", "TPU")))
    # Batch norm cannot communicate with other replicas in code of XLA.
    is_possible = not settings.synchronized_batch_norm
    if settings.jit_compile == "auto":
        return has_accelerator and is_possible
    if settings.jit_compile == "true" and not is_possible:
        raise UserError(
            "--jit_compile=true: cannot be combined with "
            "--synchronized_batch_norm. Remove one of the two."
        )
    return settings.jit_compile == "true"


def make_cadence(settings, data, folder):
    """Returns the `Cadence` of a run, with profiles written to a folder."""
    epoch = max(round(steps_per_epoch(settings, data)), 1)
    evaluate_every = settings.evaluate_every or epoch
    profile = NO_PROFILE
    if settings.profile_steps is not None:
        first, last = settings.profile_steps[0], settings.profile_steps[-1]
        profile = Profile(first, last, folder)
    return Cadence(
        num_steps(settings, data),
        settings.report_every,
        evaluate_every if "eval" in data.splits else 0,
        settings.checkpoint_every or min(epoch, 500),
        settings.keep_best != "none" or settings.early_stopping is not None,
        profile=profile,
    )


def make_evaluations(settings, data, path):
    """Returns the `Evaluations` of a run, read from its records."""
    metric = settings.keep_best
    return Evaluations(
        path,
        "accuracy" if metric == "none" else metric,
        settings.early_stopping,
        # Early stopping in the first phase must not prevent the second.
        begin=last_frozen_step(settings, data) or 0,
    )


def make_checkpoints(settings, folder, trainer, evaluations):
    """Returns the `Checkpoints` of a trainer."""
    keeps_best = settings.keep_best != "none"
    return Checkpoints(
        folder,
        trainer.model,
        trainer.optimizer,
        trainer.update,
        workers=trainer.workers,
        keep=settings.keep_checkpoints,
        best=evaluations.best_step if keeps_best else lambda step: None,
    )


def make_skipped_batches(settings, path):
    """Returns the `SkippedBatches` of a run."""
    rolls_back = settings.on_nonfinite == "rollback"
    return SkippedBatches(path, settings.max_rollbacks if rolls_back else 0)


def num_steps(settings, data):
    """Returns the number of steps of the whole run.

    Raises:
      UserError: the epochs are shorter than one step.
    """
    if settings.steps is not None:
        return settings.steps
    steps = settings.epochs * steps_per_epoch(settings, data)
    if not round(steps):
        raise UserError(
            f"--epochs={settings.epochs:g}: must be at least one step, and "
            f"{data.train.num_examples:,} images with --batch_size="
            f"{settings.batch_size} make {steps:.2g} steps. Pass more "
            "--epochs, a smaller --batch_size, or --steps=1."
        )
    return round(steps)


def check_steps_left(settings, data, step):
    """Raises UserError if a run is past its last step."""
    steps = num_steps(settings, data)
    if steps < step:
        raise UserError(
            f"--workdir={settings.workdir}: has already trained {step} steps, "
            f"more than the {steps} steps requested. Pass more --steps or "
            "--epochs, or remove both. To evaluate an earlier checkpoint, use "
            "--mode=evaluate --checkpoint=STEP."
        )


def steps_per_epoch(settings, data):
    """Returns the number of steps of an epoch, which may be a fraction."""
    return data.train.num_examples / settings.batch_size
