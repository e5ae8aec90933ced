"""A list of the recipes: what they are for, lead to and cost."""

import dataclasses
import textwrap

from train_loop.errors import check_choice
from train_loop.recipes import RECIPES
from train_loop.settings import Settings

WIDTH = 100
COLUMNS = {
    "model": "model",
    "data": "dataset",
    "batch": "batch_size",
    "epochs": "epochs",
    "optimizer": "optimizer",
    "rate": "learning_rate",
}
DEFAULTS = {
    field.name: field.metadata["default"]
    for field in dataclasses.fields(Settings)
}


def list_recipes(settings):
    """Prints all recipes, or the one that is given, with all its flags.

    Nothing of it needs TensorFlow.
    """
    name = settings.recipe
    if name in (None, "auto", "help"):
        print(table(RECIPES))
        return
    check_choice("--recipe", name, RECIPES)
    print(table({name: RECIPES[name]}))
    print()
    for setting, value in RECIPES[name].values.items():
        print(f"  --{setting}={value}")


def table(recipes):
    """Returns a row for each recipe, and below it what it leads to and costs.

    Args:
      recipes: {name: `Recipe`}.
    """
    rows = [["recipe", *COLUMNS]]
    rows += [[name, *cells(recipe)] for name, recipe in recipes.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    names = {}
    for number, (name, recipe) in enumerate(recipes.items(), start=1):
        first = names.setdefault(recipe, name)
        text = below(recipe) if first == name else f"    As {first}."
        lines[number] += f"\n{text}"
    return "\n".join(lines)


def cells(recipe):
    """Returns the texts of a recipe, one for each of `COLUMNS`."""
    # Whose data are not named takes any.
    values = {**DEFAULTS, "dataset": "any", **recipe.values}
    values["learning_rate"] *= values["batch_size"] / (
        values["base_batch_size"] or values["batch_size"]
    )
    return [
        value if isinstance(value, str) else f"{value:.6g}"
        for value in (values[name] for name in COLUMNS.values())
    ]


def below(recipe):
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
            WIDTH,
            initial_indent="    ",
            subsequent_indent="    ",
            break_on_hyphens=False,
            break_long_words=False,
        )
        for title, text in parts.items()
        if text
    )
