"""Evaluation: a report on a trained model, on any data with its classes."""

from train_loop.builders.evaluation import Evaluator
from train_loop.builders.model import find_checkpoint
from train_loop.console import printable, text_table
from train_loop.errors import UserError
from train_loop.evaluation.metrics import fit_temperature
from train_loop.evaluation.report import write_report
from train_loop.evaluation.results import Results, metrics_table
from train_loop.workdir import Workdir, read_json_lines


def evaluate(settings):
    """Writes a report on the last checkpoint of a run, or on weights.

    Any data set with the same classes will do, in any size and on any number
    of devices; the run stays as it is.

    Args:
      settings: explicit `Settings`.

    Returns:
      The content of the report's `report.json`.

    Raises:
      UserError: it cannot be evaluated, or the report not be written.
    """
    evaluator = Evaluator(settings)
    evaluator.report_folder()
    classifier = evaluator.open_own_classifier()
    examples = evaluator.open_examples(classifier.class_names)
    if examples.note:
        print(printable(examples.note))
    temperature = _fit_temperature(evaluator, classifier, examples)
    predictions = evaluator.predict(classifier, examples)
    results = Results.of(predictions, temperature, _records(settings))
    # Another evaluation may have taken the name meanwhile.
    folder, subject = evaluator.report_folder()
    report = write_report(folder, results, _facts(evaluator), subject)
    print(text_table(metrics_table(results)))
    if report["mean_roc_auc"] is None:
        print(
            "All images are of one class: there is no ROC-AUC, which compares "
            "a class with others."
        )
    print(f"Look at {folder / 'report.html'}.")
    return report


def _fit_temperature(evaluator, classifier, examples):
    """Returns the temperature of --calibration_split, None without one."""
    split = evaluator.given.calibration_split
    if split is None:
        return None
    others = evaluator.open_examples(classifier.class_names, split)
    if others.split.overlap(examples.split):
        raise UserError(
            f"--calibration_split={split} shares images with what is "
            "measured; name a part that has none of it"
        )
    predictions = evaluator.predict(classifier, others)
    return fit_temperature(predictions.logits, predictions.labels)


def _records(settings):
    if settings.workdir is None:
        return ()
    return read_json_lines(Workdir.of(settings.workdir).metrics)


def _facts(evaluator):
    """Returns what is evaluated, for the head of a report."""
    given, settings = evaluator.given, evaluator.settings
    facts = {"model": settings.model, "dataset": settings.dataset}
    facts["split"] = given.eval_split or settings.eval_split or "eval"
    if given.workdir is not None:
        workdir = Workdir.of(given.workdir)
        averaged = settings.averaged
        facts["step"] = find_checkpoint(workdir, given.checkpoint, averaged)
        if settings.average != "none":
            facts["average"] = settings.average if averaged else "none"
    else:
        facts["weights"] = given.weights
    for name in ("image_size", "crop_fraction", "test_time_augmentation"):
        if name in given.given:
            facts[name] = given.given[name]
    return facts
