"""What `--help` and `--mode=recipes` print."""

import dataclasses
import itertools
import math
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
# Column of the summaries in the overview.
SUMMARY_COLUMN = 36
EXPERT = "expert"
METAVARS = {int: "INT", float: "FLOAT"}
# Of the table of recipes: the line width, and column -> setting.
RECIPE_WIDTH = 100
COLUMNS = {
    "model": "model",
    "data": "dataset",
    "batch": "batch_size",
    "epochs": "epochs",
    "optimizer": "optimizer",
    "learning rate": "learning_rate",
}
# A value that depends on the number of training images.
BY_SIZE = "by number of images"
EXAMPLES = """\
Train, evaluate and use ResNets for image classification. [Defaults] are in
brackets; a recipe (--recipe) may change them.

  python -m train_loop.main
      Train on bundled handwritten digits, about a minute on a laptop.
  python -m train_loop.main --dataset=photos --weights=imagenet
      Fine-tune on your own images, in one folder per class.
  python -m train_loop.main --workdir=runs/NAME
      Resume an existing run.
  python -m train_loop.main --workdir=runs/NAME --mode=evaluate
      Evaluate it and write a report.
"""
MORE = """\
--help=FLAG    all about a flag: accepted values, defaults, when it applies
--help=GROUP   the same for a group; --help=all: for all flags
--mode=recipes --recipe=NAME   the flags that a recipe sets
"""


def help_text(topic=""):
    """Returns what `--help=TOPIC` prints: "mode", a group, a flag or "all".

    Raises:
      UserError: the topic is unknown.
    """
    if not topic:
        return "\n".join([EXAMPLES, _modes(), *_overview(), MORE])
    if topic == "mode":
        return _modes()
    groups, fields = grouped(), dataclasses.fields(Settings)
    flags = {flag_name(field.name): [field] for field in fields}
    topics = {"all": itertools.chain(*groups.values()), **flags, **groups}
    check_choice("--help", topic, topics)
    return "\n".join(map(_explained, topics[topic]))


def grouped():
    """Returns {group: fields of `Settings`}, with expert flags last."""
    groups, name = {}, None
    for field in dataclasses.fields(Settings):
        name = field.metadata["group"] or name
        group = EXPERT if field.metadata["expert"] else name
        groups.setdefault(group, []).append(field)
    groups[EXPERT] = groups.pop(EXPERT)
    return groups


def usage(field):
    """Returns how a flag is written, with the kind of its value."""
    name = flag_name(field.name)
    if field.type is bool:
        return f"--[no]{name}"
    kind = METAVARS.get(field.type, "TEXT")
    if field.metadata["choices"] is not None and field.type not in METAVARS:
        kind = "NAME"
    return f"--{name} {field.metadata['metavar'] or kind}"


def marks(field):
    """Returns when a flag applies: ["fixed on resume", ...]."""
    options = field.metadata
    texts = []
    if options["fixed"]:
        texts.append("fixed on resume")
    if can_be_unset(field):
        texts.append("none resets it on resume")
    if options["modes"]:
        texts.append(f"--mode={', '.join(options['modes'])}")
    return texts


def description(field):
    """Returns what a setting is, and what its values mean."""
    tables = {n: ", ".join(t) for n, t in field.metadata["tables"].items()}
    details = field.metadata["details"].format(**tables)
    return f"{field.metadata['summary']} {details}".rstrip()


def accepted(field):
    """Returns the choices or the range of a setting; "" for any value."""
    if field.metadata["choices"] is not None:
        return listed(field.metadata["choices"])
    bounds = str(field.metadata["bounds"])
    return "" if bounds == "a finite number" else bounds


def default(field):
    """Returns the default of a setting; "" without one."""
    value = field.metadata["default"]
    text = "" if value is None else to_text(value)
    return text.lower() if field.type is bool else text


def recipe_defaults(field):
    """Returns {recipe: text} of the recipes whose default differs."""
    name, default = field.name, field.metadata["default"]
    values = {n: r.settings.given.get(name) for n, r in RECIPES.items()}
    texts = {
        recipe: to_text(value)
        for recipe, value in values.items()
        if value not in (None, default)
    }
    by_size = [n for n, r in RECIPES.items() if name in r.names_by_size]
    return texts | dict.fromkeys(by_size, BY_SIZE)


def _explained(field):
    """Returns all about a flag."""
    flag = " ".join([usage(field), *(f"[{text}]" for text in marks(field))])
    recipes = [f"{n}: {text}" for n, text in recipe_defaults(field).items()]
    facts = {
        "Accepted": accepted(field),
        "Default": default(field),
        "By recipe": ", ".join(recipes),
    }
    lines = [_wrapped(flag, "", "    "), _indented(description(field))]
    lines += [_indented(f"{n}: {t}") for n, t in facts.items() if t]
    return "\n".join(lines) + "\n"


def _modes():
    texts = {f"--mode={name}": mode.summary for name, mode in MODES.items()}
    return f"Modes (default: train):\n\n{_columns(texts, 20)}\n"


def _overview():
    for group, fields in grouped().items():
        texts = {
            usage(field): f"{field.metadata['summary']} {_brief_default(field)}"
            for field in fields
        }
        columns = _columns(texts, SUMMARY_COLUMN)
        yield f"{group.capitalize()} flags:\n\n{columns}\n"


def _brief_default(field):
    """Returns a default in brackets; that of most switches is off."""
    text = default(field)
    return f"[{text}]" if text and text != "false" else ""


def _columns(texts, column):
    """Returns lines of names, each with its text in a column."""
    return "\n".join(
        f"  {name}".ljust(column - 1) + f" {text}".rstrip()
        for name, text in texts.items()
    )


def _indented(text):
    return _wrapped(text, "    ", "    ")


def _wrapped(text, first, others, width=HELP_WIDTH):
    return textwrap.fill(
        text,
        width,
        initial_indent=first,
        subsequent_indent=others,
        break_on_hyphens=False,
        break_long_words=False,
    )


def list_recipes(settings):
    """Prints all recipes, or the specified one with all its flags.

    Runs without TensorFlow.
    """
    name = current_name(settings.recipe)
    if name in (None, "auto", "help"):
        print(_recipe_table(RECIPES))
        return
    check_choice("--recipe", name, RECIPES)
    print(_recipe_table({name: RECIPES[name]}))
    print()
    print(textwrap.indent("\n".join(recipe_flags(RECIPES[name])), "  "))


def recipe_flags(recipe):
    """Returns the flags of a recipe, and those for each size, as lines."""
    lines = [f"--{setting}={value}" for setting, value in recipe.values.items()]
    for most, values in recipe.by_size.items():
        images = "more" if most == math.inf else f"up to {most:,}"
        flags = " ".join(f"--{name}={value}" for name, value in values.items())
        lines.append(f"{images} training images: {flags}")
    return lines


def _recipe_table(recipes):
    """Returns a table of recipes, with result, cost and source below each.

    Args:
      recipes: {name: `Recipe`}.
    """
    rows = [["recipe", *COLUMNS]]
    rows += [[name, *recipe_cells(recipe)] for name, recipe in recipes.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    title, *lines = (
        "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows
    )
    described = zip(lines, map(_described, recipes.values()), strict=True)
    return "\n".join([title, *itertools.chain.from_iterable(described)])


def recipe_cells(recipe):
    """Returns the texts of a recipe, one for each of `COLUMNS`."""
    values = {**default_values(), "dataset": "any", **recipe.values}
    values["learning_rate"] = scaled_learning_rate(
        *(values["learning_rate"], values["batch_size"]),
        values["base_batch_size"],
    )
    values |= dict.fromkeys(recipe.names_by_size, "by size")
    return [
        value if isinstance(value, str) else f"{value:.6g}"
        for value in (values[name] for name in COLUMNS.values())
    ]


def _described(recipe):
    """Returns result, cost and source of a recipe, as lines."""
    texts = {
        "Result": recipe.result,
        "Cost": recipe.cost,
        "Source": recipe.source,
        "Excluded": recipe.excluded,
    }
    return "\n".join(
        _wrapped(f"{title}: {text}", *["    "] * 2, RECIPE_WIDTH)
        for title, text in texts.items()
        if text
    )
