"""Evaluation: the last checkpoint of a run, measured again."""

import json

from train_loop.errors import UserError
from train_loop.run import Run
from train_loop.training.reports import format_metric, table
from train_loop.workdir import write_text


def evaluate(settings):
    """Measures the last checkpoint of a run on the evaluation split."""
    if settings.workdir is None:
        raise UserError("--mode=evaluate needs the --workdir of a run")
    changes = settings.given
    run = Run.open(changes.pop("workdir"), **changes)
    metrics = run.evaluate()
    report = {
        "step": run.trainer.step,
        "split": "eval",
        "examples": run.data.evaluation.num_examples,
        **metrics,
    }
    path = run.workdir.report / "report.json"
    write_text(path, json.dumps(report, indent=2) + "\n")
    header = ["split", "step", *metrics, "images"]
    row = ["eval", str(report["step"])]
    row += [format_metric(*item) for item in metrics.items()]
    row += [f"{report['examples']:,}"]
    print(table([header, row]))
    print(f"Written to {path}.")
