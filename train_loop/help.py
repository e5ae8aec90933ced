"""What `--help` and `--mode=recipes` print."""

import dataclasses
import itertools
import textwrap

from train_loop.errors import check_choice, listed
from train_loop.modes import MODES
from train_loop.recipes import RECIPES, current_name
from train_loop.settings import (
    Settings,
    can_be_unset,
    default_values,
    flag_name,
    scaled_learning_rate,
    to_text,
)

HELP_WIDTH = 80
# Of the table of recipes: its lines, and column -> setting.
CELL_WIDTH = 100
COLUMNS = {
    "model": "model",
    "data": "dataset",
    "batch": "batch_size",
    "epochs": "epochs",
    "optimizer": "optimizer",
    "rate": "learning_rate",
}
EXAMPLES = """\
Trains a ResNet on images and measures it.

Handwritten digits, bundled, about a minute on a laptop; your own pictures, in
a folder per class; on with a run that was stopped; what it is worth:

  python -m train_loop.main
  python -m train_loop.main --dataset=photos --weights=imagenet
  python -m train_loop.main --workdir=runs/NAME
  python -m train_loop.main --workdir=runs/NAME --mode=evaluate
"""
MORE = """\
A recipe (--recipe) sets everything about training that is not given as a flag;
--mode=recipes lists them, --mode=recipes --recipe=NAME prints the flags of one.
--help=GROUP explains the flags of a group, --help=FLAG one, --help=all all.
"""


def help_text(topic=""):
    """Returns what `--help=TOPIC` prints: of a group, a flag or "all".

    Raises:
      UserError: there is no such topic.
    """
    if not topic:
        return "\n".join([EXAMPLES, _modes(), _overview(), MORE])
    groups, fields = grouped(), dataclasses.fields(Settings)
    flags = {flag_name(field.name): [field] for field in fields}
    topics = {"all": fields, **groups, **flags, **groups}
    check_choice("--help", topic, topics)
    return "\n".join(map(_explained, topics[topic])) + "\n"


def grouped():
    """Returns {group: fields of `Settings`}: each begins where it is named."""
    groups, name = {}, None
    for field in dataclasses.fields(Settings):
        name = field.metadata["group"] or name
        groups.setdefault(name, []).append(field)
    return groups


def _explained(field):
    """Returns the flag of a setting, what it is, may be, and is by default."""
    flag = f"--{'[no]' * (field.type is bool)}{flag_name(field.name)}"
    return f"{flag}\n{_wrapped(meaning(field), *['    '] * 2)}"


def meaning(field):
    """Returns what a setting is, what it may be and what it is by default."""
    choices, default = field.metadata["choices"], field.metadata["default"]
    modes = [f"--mode={name}" for name in field.metadata["modes"]]
    tables = {n: ", ".join(t) for n, t in field.metadata["tables"].items()}
    parts = [field.metadata["help"].format(**tables)]
    if field.metadata["fixed"]:
        parts.append("An existing run keeps it.")
    if can_be_unset(field):
        parts.append("none: an existing run goes on as if it were not given.")
    if modes:
        parts.append(f"For {' and '.join(modes)}.")
    if choices is not None:
        parts.append(f"One of: {listed(choices)}.")
    if default is not None:
        # Of a data set, which most are after, and not of every paper.
        others = {
            name: to_text(recipe.settings.given[field.name])
            for name, recipe in RECIPES.items()
            if name == recipe.values.get("dataset")
            and recipe.settings.given.get(field.name, name)
            not in (default, name)
        }
        texts = [to_text(default), *(f"{n}: {t}" for n, t in others.items())]
        parts.append(f"Default: {'; '.join(texts)}.")
    return " ".join(parts)


def _modes():
    rows = {f"--mode={name}": mode.summary for name, mode in MODES.items()}
    return f"What to do (by default, train):\n\n{_rows(rows)}\n"


def _overview():
    rows = {
        group: " ".join(f"--{flag_name(field.name)}" for field in fields)
        for group, fields in grouped().items()
    }
    return f"Flags, in groups:\n\n{_rows(rows)}\n"


def _rows(texts):
    """Returns lines of names, and a text beside each."""
    width = max(map(len, texts)) + 4
    return "\n".join(
        _wrapped(text, f"  {name}".ljust(width), " " * width)
        for name, text in texts.items()
    )


def _wrapped(text, first, others):
    return textwrap.fill(
        text,
        HELP_WIDTH,
        initial_indent=first,
        subsequent_indent=others,
        break_on_hyphens=False,
        break_long_words=False,
    )


def list_recipes(settings):
    """Prints all recipes, or the one that is given, with all its flags.

    Nothing of it needs TensorFlow.
    """
    name = current_name(settings.recipe)
    if name in (None, "auto", "help"):
        print(_recipe_table(RECIPES))
        return
    check_choice("--recipe", name, RECIPES)
    print(_recipe_table({name: RECIPES[name]}))
    print()
    for setting, value in RECIPES[name].values.items():
        print(f"  --{setting}={value}")


def _recipe_table(recipes):
    """Returns a row for each recipe, and below it what it leads to and costs.

    Args:
      recipes: {name: `Recipe`}.
    """
    rows = [["recipe", *COLUMNS]]
    rows += [[name, *_cells(recipe)] for name, recipe in recipes.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    title, *lines = (
        "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows
    )
    described = zip(lines, map(_below, recipes.values()), strict=True)
    return "\n".join([title, *itertools.chain.from_iterable(described)])


def _cells(recipe):
    """Returns the texts of a recipe, one for each of `COLUMNS`."""
    # Whose data are not named takes any.
    values = {**default_values(), "dataset": "any", **recipe.values}
    values["learning_rate"] = scaled_learning_rate(
        *(values["learning_rate"], values["batch_size"]),
        values["base_batch_size"],
    )
    return [
        value if isinstance(value, str) else f"{value:.6g}"
        for value in (values[name] for name in COLUMNS.values())
    ]


def _below(recipe):
    """Returns where a recipe comes from, what it leads to and costs."""
    parts = {
        "Leads to: ": recipe.expected,
        "Costs: ": recipe.cost,
        "Source: ": recipe.source,
        "Left out: ": recipe.left_out,
    }
    return "\n".join(
        textwrap.fill(
            title + text,
            CELL_WIDTH,
            initial_indent="    ",
            subsequent_indent="    ",
            break_on_hyphens=False,
            break_long_words=False,
        )
        for title, text in parts.items()
        if text
    )
