"""The generated parts of the documentation, as a hook of MkDocs.

A page says where a part goes, and MkDocs calls `on_page_markdown`, which puts
it there:

- `<!-- generated: NAME -->`, on a line of its own: what a function of
  `GENERATED` returns.
- A line of the names of variants and nothing else: their tables.

As a hook, and not as a script that writes pages, it runs at every build: no
text exists twice, no page can be older than the code, and a change of a help
text is a change of one file. Pages in the repository stay readable: they have
the texts, and the names of the variants. What takes minutes, counting 113
models, is a script (`docs/count_models.py`) whose numbers are kept. The pages
of the two packages need no hook: mkdocstrings reads the docstrings.
"""

import json
import pathlib
import re
import statistics

from train_loop import help as flags
from train_loop.modes import MODES
from train_loop.recipes import RECIPES
from train_loop.settings import (
    default_values,
    flag_name,
)

ROOT = pathlib.Path(__file__).parents[1]
REFERENCE = ROOT / "docs/reference"
MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
VARIANT_LINE = re.compile(r"^`\w+`(?: `\w+`)*$", re.MULTILINE)


def on_page_markdown(markdown, page, **_):
    """Returns the Markdown of a page with its generated parts."""
    return fill(markdown, page.file.src_uri)


def fill(markdown, path):
    """Returns Markdown with its generated parts.

    Args:
      markdown: as written.
      path: of the page, relative to `docs/`.
    """
    if path == "reference/models.md":
        markdown = VARIANT_LINE.sub(lambda m: variant_tables(m[0]), markdown)
    return MARK.sub(lambda mark: GENERATED[mark[1]](), markdown)


def table(rows):
    """Returns a Markdown table; the first row is its header."""
    lines = [f"| {' | '.join(map(escaped, row))} |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    return "\n".join(lines)


def escaped(text):
    """Returns the text of a cell; in code, "|" needs no backslash."""
    parts = re.split("(`[^`]*`)", text)
    parts[::2] = [part.replace("|", "\\|") for part in parts[::2]]
    return "".join(parts)


def literal(text):
    """Returns a text as Markdown shows it: not `<name>` as HTML."""
    return text.replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def linked(text):
    """Returns a text whose bare addresses are links."""
    return re.sub(r"https?://[^\s,;)]*[^\s,;).:]", r"<\g<0>>", text)


def mode_table():
    rows = [("mode", "what it does")]
    rows += [(f"`--mode={name}`", m.summary) for name, m in MODES.items()]
    return table(rows)


def flag_overview():
    """Returns a table for each group of flags, with links to their entries."""
    parts = []
    for group, fields in flags.grouped().items():
        rows = [("flag", "summary", "default")]
        rows += [
            (
                f"[`{flags.usage(field)}`](#{flag_name(field.name)})",
                with_flags(field.metadata["summary"]),
                with_code(flags.default(field)),
            )
            for field in fields
        ]
        parts.append(f"### {group.capitalize()}\n\n{table(rows)}")
    return "\n\n".join(parts)


def flag_entries():
    """Returns the full text of every flag, by group."""
    parts = []
    for group, fields in flags.grouped().items():
        parts.append(f"## {group.capitalize()} flags")
        parts += map(flag_entry, fields)
    return "\n\n".join(parts)


def flag_entry(field):
    name = flag_name(field.name)
    facts = {
        "Accepted": with_code(flags.accepted(field)),
        "Default": with_code(flags.default(field)),
        "By recipe": by_value(flags.recipe_defaults(field)),
    }
    marks = "".join(f" `{text}`{{.mark}}" for text in flags.marks(field))
    lines = [f"**{title}:** {text}" for title, text in facts.items() if text]
    return "\n\n".join(
        [
            f"### --{name} {{ #{name} }}",
            f"`{flags.usage(field)}`{marks}",
            with_flags(flags.description(field)),
            "  \n".join(lines),
        ]
    )


def with_code(text):
    return f"`{text}`" if text else ""


def with_flags(text):
    """Returns a help text with its flags as links."""
    names = {flag_name(field) for field in default_values()} | {
        flag_name(field) for field in default_values(of_modes=True)
    }

    def link(match):
        shown = f"`{match[0]}`"
        return f"[{shown}](#{match[1]})" if match[1] in names else shown

    parts = re.split(r"(--\w+(?:=[\w/.]+)?)", text)
    return "".join(
        re.sub(r"--(\w+).*", link, part)
        if part.startswith("--")
        else literal(part)
        for part in parts
    )


def by_value(recipes):
    """Returns the recipes of each value: "`0.1`: digits, imagenet2012"."""
    names = {}
    for recipe, value in recipes.items():
        names.setdefault(value, []).append(f"[{recipe}](recipes.md#{recipe})")
    return "; ".join(
        f"{', '.join(each)}: `{value}`" for value, each in names.items()
    )


def recipe_tables():
    """Returns what recipes train, and their results."""
    header = ("recipe", "model", "data", "batch size", "epochs", "optimizer")
    settings = [(*header, "learning rate")]
    results = [("recipe", "result (published by others, unless it says so)")]
    for name, recipe in RECIPES.items():
        link = f"[`{name}`](#{name})"
        settings.append((link, *flags.recipe_cells(recipe)))
        results.append((link, linked(recipe.result)))
    return f"{table(settings)}\n\n{table(results)}"


def recipe_result(recipe):
    """Returns whose result it is, and the result of a recipe."""
    text = recipe.result
    if not text.startswith("Not measured"):
        return "Result", text
    rest = text.removeprefix("Not measured").lstrip(".: ")
    return "Result (not measured here; theirs)", rest[:1].upper() + rest[1:]


def recipe_entries():
    return "\n\n".join(map(recipe_entry, RECIPES, RECIPES.values()))


def recipe_entry(name, recipe):
    title, result = recipe_result(recipe)
    facts = {
        title: result,
        "Cost": recipe.cost,
        "Source": recipe.source,
        "Excluded": recipe.excluded,
    }
    lines = [f"**{n}:** {linked(text)}  " for n, text in facts.items() if text]
    values = "\n".join(flags.recipe_flags(recipe))
    return "\n\n".join(
        [
            f"## {name} {{ #{name} }}",
            "\n".join(lines).rstrip(),
            f"```text\n{values}\n```",
        ]
    )


def variant_tables(names):
    """Returns what some variants cost, and where their weights are.

    Args:
      names: "`resnet18` `resnet34`", as on the page.
    """
    counted = json.loads((REFERENCE / "counted.json").read_text("utf-8"))
    published = json.loads((REFERENCE / "published.json").read_text("utf-8"))
    header = ("image size", "parameters", "multiply-adds", "activations")
    costs = [("variant", *header)]
    weights = [("variant", "weights", "license", "their top-1")]
    for name in re.findall(r"\w+", names):
        of_model, known = counted[name], published[name]
        costs.append(
            (
                f"`{name}`{{#{name}}}",
                str(known["image_size"]),
                f"{of_model['parameters'] / 1e6:.2f} M",
                f"{of_model['multiply_adds'] / 1e9:.2f} G",
                f"{of_model['activation_bytes'] / 2**20:.0f} MiB",
            )
        )
        weights += [
            (
                f"`{name}`",
                with_code(source.get("name")) or source["source"],
                source.get("license", "-"),
                accuracy(source),
            )
            for source in [*known["weights"], *known.get("papers", [])]
        ]
    tables = [costs, weights] if len(weights) > 1 else [costs]
    return "\n\n".join(map(table, tables))


def accuracy(figures):
    if "top1" not in figures:
        return "-"
    return f"{figures['top1']:.1f} % at {figures['top1_size']}"


def version_table():
    """Returns what `benchmarks.versions` has found."""
    tried = json.loads((ROOT / "benchmarks/versions.json").read_text("utf-8"))
    columns = ("python", "tensorflow", "keras", "numpy", "digits", "tests")
    rows = [("environment", *columns)]
    rows += [
        (name, *(result.get(column, "-") for column in columns))
        for name, result in tried.items()
    ]
    return table(rows)


def fine_tuning_table():
    """Returns what `benchmarks.fine_tuning` has measured."""
    file = ROOT / "benchmarks/fine_tuning.json"
    accuracies, steps = {}, {}
    for each in json.loads(file.read_text("utf-8")):
        step, accuracy = each["curve"][-1]
        key = each["images"], each["start"]
        accuracies.setdefault(key, []).append(100 * accuracy)
        steps[each["images"]] = step
    rows = [("training images", "steps", "CIFAR-10 weights", "random weights")]
    for images, step in sorted(steps.items()):
        texts = [
            f"{statistics.mean(found):.1f} % "
            f"({min(found):.1f} to {max(found):.1f})"
            for found in (
                accuracies[images, start] for start in ("weights", "random")
            )
        ]
        rows.append((f"{images:,}", str(step), *texts))
    return table(rows)


GENERATED = {
    "fine_tuning_table": fine_tuning_table,
    "versions": version_table,
    "modes": mode_table,
    "flag_overview": flag_overview,
    "flag_entries": flag_entries,
    "recipe_tables": recipe_tables,
    "recipe_entries": recipe_entries,
}
