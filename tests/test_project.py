"""What README, the recipes and the picture of the design promise."""

import ast
import pathlib
import re

import pytest
from absl import flags

from resnet_layers import VARIANTS, save_safetensors
from train_loop import settings
from train_loop.recipes import RECIPES

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PARTS = sorted((ROOT / "train_loop").glob("[!_]*.py"))


def imported_modules(path):
    """Returns the full names of what a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


# What knows the flags, and puts the parts together as they say.
HUBS = ("main", "inputs", "settings")
# Parts that others are made of.
COMMON = {
    "caching": ("train_loop.splits",),
    "datasets": ("train_loop.splits", "train_loop.tfds_source"),
    "embeddings": ("train_loop.splits",),
    "tfds_source": ("train_loop.splits",),
}


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.name)
def test_parts_meet_in_the_hubs_only(path):
    if path.stem in HUBS:
        return
    own = {n for n in imported_modules(path) if n.startswith("train_loop")}
    common = ("train_loop.UserError", *COMMON.get(path.stem, ()))
    assert all(name.startswith(common) for name in own)
    assert not any(n.startswith("absl") for n in imported_modules(path))


def test_library_does_not_know_the_loop():
    for path in (ROOT / "resnet_layers").glob("*.py"):
        names = imported_modules(path)
        assert not any(n.startswith(("train_loop", "absl")) for n in names)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_name_flags_that_exist(name):
    assert set(RECIPES[name].flags) <= set(flags.FLAGS)
    assert set(RECIPES["imagenet2012"].flags) <= set(RECIPES[name].flags)


def test_every_flag_that_follows_the_recipe_is_in_every_recipe():
    for flag in flags.FLAGS.get_key_flags_for_module(settings):
        if flag.help.endswith("Default: the recipe's."):
            for recipe in RECIPES.values():
                assert flag.name in recipe.flags


def test_readme_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own_model, weights = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    namespace = {}
    exec(own_model, namespace)
    assert namespace["logits"].shape == (1, 37)
    assert (tmp_path / "hands.keras").exists()

    theirs = VARIANTS["resnet50"]()
    theirs.build((None, 224, 224, 3))
    save_safetensors(theirs, "resnet50.safetensors")
    exec(weights, namespace)
    assert (tmp_path / "pets.safetensors").exists()


@pytest.mark.parametrize("name", VARIANTS)
def test_readme_counts_parameters_right(name, count_parameters):
    [count] = re.findall(rf"\| `{name}` \| \w+ \| ([\d,]+) \|", README)
    assert int(count.replace(",", "")) == count_parameters(name)


def test_readme_names_every_file():
    for path in [*PARTS, *(ROOT / "resnet_layers").glob("[!_]*.py")]:
        assert f"  {path.name} " in README
