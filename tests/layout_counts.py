"""Four counts of the layout, from the source.

python tests/layout_counts.py
"""

import ast
import functools
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(
    path
    for package in ("resnet_layers", "train_loop")
    for path in (ROOT / package).rglob("*.py")
)
TRAIN = "train_loop.modes.train"
# Path of an image in a batch: the step, its inputs, the model.
ENTRIES = (".Trainer.train", ".Classifier.logits", ".ResNet.call")


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


@functools.cache
def imported(name, late=False):
    """Returns {name in a module: full name of the import}."""
    inside = {
        node
        for function in ast.walk(TREES[name])
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
    }
    found = {}
    for node in ast.walk(TREES[name]):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        if late or node not in inside:
            of = getattr(node, "module", None)
            for each in node.names:
                full = f"{of}.{each.name}" if of else each.name
                found[each.asname or each.name] = full
    return found


def module_of(name):
    """Returns the longest part of a full name that is a module, or ""."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def imports_of(name, late=False):
    """Returns the project's modules that a module imports."""
    return {*map(module_of, imported(name, late).values())} - {"", name}


def reached(starts, following):
    """Returns everything reachable by `following`."""
    found, ahead = set(), [*starts]
    while ahead:
        if (name := ahead.pop()) not in found:
            found.add(name)
            ahead += following(name)
    return found


@functools.cache
def definitions():
    """Returns {full name: node} of functions, classes, methods and tables."""
    found = {}
    for name, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found[f"{name}.{node.name}"] = node
            elif isinstance(node, ast.Assign):
                found |= {
                    f"{name}.{ast.unparse(t)}": node for t in node.targets
                }
            for inner in getattr(node, "body", ()):
                if isinstance(inner, ast.FunctionDef):
                    found[f"{name}.{node.name}.{inner.name}"] = inner
    return found


def resolve(expression, owner):
    """Returns the object that an expression refers to, or None."""
    first, *rest = ast.unparse(expression).split(".")
    module = module_of(owner)
    if first in ("self", "cls"):
        first = owner.removeprefix(f"{module}.").partition(".")[0]
    start = imported(module, late=True).get(first, f"{module}.{first}")
    if ".".join([start, *rest]) in definitions():
        return ".".join([start, *rest])
    if not rest:
        return None
    # Names of variables are names of classes: `self.store` is a `Store`.
    kind, name = map(re.escape, [first, *rest][-2:])
    ends = re.compile(rf"\.\w*{kind}\.{name}$", re.IGNORECASE)
    return next(filter(ends.search, definitions()), None)


def receivers(owner):
    """Returns functions and classes that `settings` are passed to."""
    found = []
    for call in ast.walk(definitions()[owner]):
        if isinstance(call, ast.Call):
            values = [*call.args, *(each.value for each in call.keywords)]
            texts = ",".join(map(ast.unparse, values))
            if re.search(r"(^|\.|,)settings(,|$)", texts):
                found.append(resolve(call.func, owner))
    return filter(None, found)


def references(owner):
    """Returns functions, methods and tables that a function refers to."""
    names = [
        resolve(node, owner) or ""
        for node in ast.walk(definitions()[owner])
        if isinstance(node, ast.Name | ast.Attribute)
    ]
    return [name for name in names if name.startswith("train_loop.data.")]


def main():
    ours = [name for name in MODULES if name.startswith("train_loop")]
    top = (ROOT / "train_loop").glob("[!_]*.py")
    print(f"{len(ours)} files in train_loop, {len([*top])} modules at its top")
    early = reached([TRAIN], imports_of)
    late = reached([TRAIN], functools.partial(imports_of, late=True)) - early
    texts = "".join(MODULES[name].read_text() for name in early)
    named = {*re.findall(r'"(train_loop[\w.]*):', texts)} - early - late
    print(
        f"{len(early & {*ours})} files imported by {TRAIN}, {len(early)} with "
        f"resnet_layers; {len(late)} more by functions, {len(named)} by name"
    )
    settings = reached([f"{TRAIN}.train"], receivers)
    files = {*map(module_of, settings)}
    print(f"{len(files)} files with settings, {len(settings)} functions")
    starts = [n for n in definitions() if n.endswith(".training_batches")]
    image = reached([n for n in starts if ".data." in n], references)
    image |= {n for n in definitions() if n.endswith(ENTRIES)}
    print(f"{len({*map(module_of, image)})} files that an image passes through")


if __name__ == "__main__":
    main()
