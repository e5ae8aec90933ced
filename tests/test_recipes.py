"""Recipes: two steps of each, and the list of them."""

import re

import numpy as np
import pytest
import tensorflow as tf
from samples import write_folder

from resnet_layers import VARIANTS, save_safetensors
from train_loop import Run, Settings
from train_loop.recipes import RECIPES

# Recipes that differ in more than numbers.
DIFFERENT = {recipe: name for name, recipe in RECIPES.items()}


def kind(recipe):
    """Returns the parts of a recipe, without its numbers."""
    settings = recipe.settings
    return (
        settings.optimizer,
        settings.loss,
        settings.weight_average,
        "weights" in recipe.values,
        "base_batch_size" in recipe.values,
        tuple(operation.name for operation in settings.augment or ()),
        settings.schedule and settings.schedule.name,
    )


KINDS = {kind(recipe): recipe for recipe in reversed(DIFFERENT)}


@pytest.fixture(scope="module")
def images_folder(tmp_path_factory):
    """Returns a folder with a few images of two classes."""
    folder = tmp_path_factory.mktemp("pictures")
    write_folder(folder, {"train/cat": 6, "train/dog": 6})
    return folder


@pytest.fixture
def untraced():
    """Runs steps eagerly, which is faster than tracing them."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Even though the `tf.config")
@pytest.mark.usefixtures("untraced", "small_net")
@pytest.mark.parametrize("recipe", KINDS.values(), ids=DIFFERENT.get)
def test_recipe_trains_for_two_steps(tmp_path, images_folder, recipe):
    """With its own optimizer, schedule, loss and augmentation."""
    weights = {}
    if "weights" in recipe.values:
        net = VARIANTS["resnet_tiny"](num_classes=1000)
        net.build((None, 8, 8, 3))
        save_safetensors(net, tmp_path / "tiny.safetensors")
        weights = {"weights": tmp_path / "tiny.safetensors"}
    run = Run.create(
        Settings(
            recipe=DIFFERENT[recipe],
            dataset=images_folder,
            model="resnet_tiny",
            image_size=8,
            batch_size=4,
            steps=2,
            strategy="one_device",
            workdir=tmp_path / "run",
            validation_fraction=0,
            **weights,
        )
    )
    variables = run.classifier.model.trainable_variables
    before = [variable.numpy() for variable in variables]
    run.trainer.train(iter(run.training_batches()), tf.constant(2))
    results = run.trainer.results("train")
    assert run.trainer.step == 2
    assert np.isfinite(results["loss"])
    assert run.trainer.is_finite()
    moved = [
        np.any(variable.numpy() != value)
        for variable, value in zip(variables, before, strict=True)
    ]
    # In the first step blocks are identities, and some kernels do not move.
    assert np.mean(moved) > 0.5
    for name in ("optimizer", "schedule", "loss", "augment"):
        assert (
            getattr(run.settings, name) == getattr(recipe.settings, name)
            or name not in recipe.values
        )


@pytest.mark.slow
@pytest.mark.usefixtures("small_net")
def test_weights_are_fine_tuned_by_the_size_of_the_data(
    tmp_path, images_folder, run
):
    """A run says what it has chosen, and keeps it."""
    model = VARIANTS["resnet_tiny"](num_classes=2)
    model.build((None, 8, 8, 3))
    save_safetensors(model, tmp_path / "tiny.safetensors")
    arguments = (
        f"--dataset={images_folder}",
        "--model=resnet_tiny",
        f"--weights={tmp_path / 'tiny.safetensors'}",
        "--image_size=8",
        "--batch_size=4",
        "--warmup_epochs=1",
        f"--workdir={tmp_path / 'run'}",
    )
    status, output, _ = run(*arguments, "--steps=1")
    assert status == 0
    chosen = "Recipe finetune, for 9 training images: --batch_size=4 "
    [line] = [x for x in output.splitlines() if x.startswith(chosen)]
    assert "--epochs=200" in line
    assert "--warmup_epochs=1" in line
    settings = Run.open(tmp_path / "run", steps=2).settings
    assert (settings.recipe, settings.epochs) == ("finetune", 200)
    assert settings.warmup_epochs == 1


def test_recipes_have_source_result_and_cost():
    for name, recipe in RECIPES.items():
        for text in (recipe.source, recipe.result, recipe.cost):
            assert text.endswith("."), name
        assert recipe.excluded[-1:] in ("", "."), name


def listed(output):
    """Returns {recipe: cells} of a table."""
    rows = [line for line in output.splitlines()[1:] if line[:1].strip()]
    return {row.split()[0]: row.split()[1:] for row in rows}


@pytest.mark.parametrize("argument", ["--mode=recipes", "--recipe=help"])
def test_recipes_are_listed(run, argument):
    status, output, _ = run(argument)
    assert status == 0
    assert max(map(len, output.splitlines())) <= 100
    rows = listed(output)
    assert [*rows] == [*RECIPES]
    goyal = ["resnet50", "imagenet2012", "8192", "90", "sgd", "3.2"]
    assert rows["imagenet_goyal2017"] == goyal
    for name, recipe in RECIPES.items():
        if DIFFERENT[recipe] == name:
            assert recipe.source.split()[0] in output


def test_one_recipe_is_shown_with_its_flags(run):
    _, output, _ = run("--mode=recipes", "--recipe=imagenet_rsb_a1")
    assert [*listed(output)] == ["imagenet_rsb_a1"]
    flags = re.findall(r"^  --(\w+)=(.*)$", output, re.MULTILINE)
    recipe = RECIPES["imagenet_rsb_a1"]
    assert Settings(**dict(flags)) == recipe.settings
    status, _, errors = run("--mode=recipes", "--recipe=imagenet_rsb_a4")
    assert status == 1
    assert "Did you mean imagenet_rsb_a" in errors
