"""What README and the pages of `docs/` promise: code, commands, links."""

import ast
import collections
import dataclasses
import importlib
import json
import re
import shlex
import shutil

import huggingface_hub
import pytest
from absl.testing import flagsaver
from layout_counts import ROOT
from samples import SMALL, SMALL_NET, write_folder, write_hand_signs
from test_project import PUBLISHED as PARAMETERS

import resnet_layers
import train_loop
from docs import generate
from docs.count_models import COUNTED_FILE, PUBLISHED, count
from resnet_layers import VARIANTS, save_safetensors
from resnet_layers.weights import IMAGENET_FILES
from train_loop import Run, Settings, main
from train_loop.help import help_text
from train_loop.recipes import RECIPES
from train_loop.settings import OLD_NAMES, REMOVED, flag_name

DOCS = ROOT / "docs"
CONFIG = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
COUNTED = json.loads(COUNTED_FILE.read_text(encoding="utf-8"))
# Some of each kind of block, stem and norm.
COUNTED_NOW = ("resnet26", "resnet26d", "seresnet18", "resnet20", "resnet_tiny")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
}
# A code block, with the mark before it: `<!-- test: run -->`.
FENCE = re.compile(
    r"^(?P<mark>[ ]*<!-- test: run -->\n)?"
    r"(?P<indent>[ ]*)```(?P<language>[\w-]*)[^\n]*\n"
    r"(?P<code>.*?)^(?P=indent)```[ ]*$",
    re.MULTILINE | re.DOTALL,
)
SHELLS = ("", "bash", "console", "sh", "shell")
# A line of a shell, with its continuations, that runs the program.
COMMAND = re.compile(
    r"^[^\n#`]*?\bpython3? -m train_loop(?P<module>\.\w+)?"
    r"(?P<flags>(?:\\\n|.)*)$",
    re.MULTILINE,
)
SHELL_OPERATORS = {"|", ">", ">>", "2>", "&&", "&", ";", "<"}
# Flags of other programs, and of the program's own parser.
OTHER_FLAGS = {
    *("benchmarks", "editable", "extra-index-url", "flagfile", "gpus-per-task"),
    *("help", "logdir", "mode", "name", "strict", "verbosity", "workers"),
}


def fences(page, *languages):
    """Returns [(whether it is marked to run, code), ...] of a page."""
    found = []
    for match in FENCE.finditer(PAGES[page]):
        if match["language"] in languages:
            code = re.sub(f"(?m)^{match['indent']}", "", match["code"])
            found.append((match["mark"] is not None, code))
    return found


PYTHON_PAGES = [page for page in PAGES if fences(page, "python")]


def test_readme_is_one_page():
    assert len(PAGES["README.md"].splitlines()) <= 150


def test_tests_that_pages_name_exist():
    names = set(re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", str(PAGES)))
    assert len(names) > 30
    for path, name in names:
        text = (ROOT / path).read_text(encoding="utf-8")
        assert not name or f"\ndef {name}(" in text, f"{path}::{name}"


@pytest.mark.parametrize("page", PYTHON_PAGES)
def test_imports_of_code_resolve(page):
    for _, code in fences(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")


# Their functions have tests of their own: test_measuring, test_export.
LONG_PAGES = ("docs/guides/evaluation.md", "docs/guides/export.md")


def run_marks(page):
    """Returns `slow` for pages whose code trains or needs a trained run."""
    if page in LONG_PAGES:
        return [pytest.mark.slow, pytest.mark.long]
    code = "".join(code for runs, code in fences(page, "python") if runs)
    slow = "train_loop" in code or ".fit(" in code or code.count("\n") > 40
    return [pytest.mark.slow] if slow else []


RUN_PAGES = [
    pytest.param(page, marks=run_marks(page))
    for page in PYTHON_PAGES
    if any(runs for runs, _ in fences(page, "python"))
]


@pytest.fixture(scope="session")
def trained_on_photos(tmp_path_factory):
    """Returns a folder with `photos/`, hand signs and a run, `runs/photos`."""
    root = tmp_path_factory.mktemp("docs")
    write_folder(root / "photos", {"cat": 10, "dog": 10}, "jpeg")
    shutil.copy(root / "photos/cat/0.jpeg", root / "cat.jpg")
    write_hand_signs(root)
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch, "resnet_tiny")
        settings = Settings(
            dataset=root / "photos", workdir=root / "runs/photos", steps=2
        )
        Run.create(settings.over(SMALL)).train()
    return root


def shrink(patch, *names):
    """Gives variants one narrow block per stage."""
    for name in names:
        arguments = VARIANTS[name].arguments
        stages = len(arguments["stage_sizes"])
        small = {"stage_sizes": (1,) * stages, "width": 8}
        if name == "resnet_tiny":
            small = SMALL_NET
        for argument, value in small.items():
            patch.setitem(arguments, argument, value)


def download(folder, name):
    """Writes a file like timm's, in place of a download."""
    variant, _, _ = name.removeprefix("timm/").partition(".")
    model = VARIANTS[variant]()
    model.build((None, 64, 64, 3))
    folder.mkdir(exist_ok=True)
    save_safetensors(model, folder / "model.safetensors")
    config = f'{{"architecture": "{variant}"}}'
    (folder / "config.json").write_text(config)
    return folder


@pytest.mark.parametrize("page", RUN_PAGES)
def test_code_runs(page, trained_on_photos, tmp_path, monkeypatch):
    """Code blocks of a page share their names, as in a notebook."""
    shutil.copytree(trained_on_photos, tmp_path, dirs_exist_ok=True)
    flags = tmp_path / "runs/photos/flags.txt"
    text = flags.read_text().replace(str(trained_on_photos), str(tmp_path))
    flags.write_text(text)
    monkeypatch.chdir(tmp_path)
    blocks = [code for runs, code in fences(page, "python") if runs]
    named = set(re.findall(r"\w+", "".join(blocks))) & VARIANTS.keys()
    shrink(monkeypatch, *{*named, "resnet_tiny"})
    monkeypatch.setattr(Run, "create", create_small(Run.create))
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **_: download(tmp_path / "hub", name),
    )
    namespace = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, page, "exec"), namespace)


def create_small(create):
    """Returns `Run.create` for a model and a number of steps that are small."""

    def create_run(settings):
        small = Settings(steps=2, batch_size=4, image_size=8).over(SMALL)
        return create(small.over(settings))

    return create_run


def commands(page):
    """Returns [(module, arguments), ...] of the commands on a page."""
    blocks = [code for _, code in fences(page, *SHELLS)]
    # In the text, between backticks.
    blocks += re.findall(r"`([^`]*python -m train_loop[^`]*)`", outside(page))
    return [
        (match["module"] or ".main", arguments(match["flags"]))
        for block in blocks
        for match in COMMAND.finditer(block)
    ]


def arguments(text):
    """Returns the arguments of a command, up to the next operator."""
    words = shlex.split(text.replace("\\\n", " "), comments=True)
    ends = [n for n, word in enumerate(words) if word in SHELL_OPERATORS]
    return words[: min(ends, default=len(words))]


def outside(page):
    """Returns a page without its code blocks."""
    return FENCE.sub("", PAGES[page])


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_commands_are_accepted(page):
    for module, words in commands(page):
        if module == ".launch":
            own, words = (
                words[: words.index("--")],
                words[words.index("--") + 1 :],
            )
            assert all(word.startswith("--workers=") for word in own)
        else:
            assert module == ".main", (page, module)
        accept([w for w in words if not w.startswith("--flagfile=")])


def accept(words):
    """Raises UserError for flags that the program would not accept."""
    topics = [word for word in words if word.startswith("--help")]
    if topics:
        help_text(topics[0].partition("=")[2])
        return
    with flagsaver.flagsaver():
        main.FLAGS.unparse_flags()
        main.parse(["main", *words])
        main.read_settings()


@pytest.mark.parametrize(
    # Those who come from elsewhere read other programs' flags.
    "page",
    [page for page in PAGES if "coming-from" not in page],
)
def test_flags_in_the_text_exist(page):
    names = {flag_name(field.name) for field in dataclasses.fields(Settings)}
    named = re.findall(r"`--(?:\[no\])?([a-z]\w+)", outside(page))
    unknown = {
        name
        for name in named
        if name not in names | OTHER_FLAGS
        and name.removeprefix("no") not in names
    }
    assert unknown <= OLD_NAMES.keys() | REMOVED.keys(), page


def filled(page):
    """Returns a page with its generated parts."""
    return generate.fill(PAGES[page], page.removeprefix("docs/"))


def anchors(page):
    """Returns the anchors of a page, as MkDocs and repositories make them."""
    text = FENCE.sub("", filled(page) if page in PAGES else "")
    found = set(re.findall(r"\{ ?#([\w.-]+) ?\}", text))
    found |= set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        heading = re.sub(r"\{.*\}|[`*]|\]\([^)]*\)", "", heading)
        slug = re.sub(r"[^\w\s-]", "", heading).strip().lower()
        found.add(re.sub(r"[-\s]+", "-", slug))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = re.sub("`[^`]*`", "code", FENCE.sub("", filled(page)))
    for target in re.findall(r"\]\(<?([^)\s>]+)>?\)", text):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        assert found.exists(), (page, target)
        # What lies outside of `docs/` is not on the site.
        assert page == "README.md" or found.resolve().is_relative_to(DOCS)
        if anchor:
            other = found.resolve().relative_to(ROOT).as_posix()
            assert anchor in anchors(other), (page, target)


def paragraphs(page):
    """Returns the paragraphs of at least 25 words, with plain blanks."""
    blocks = re.split(r"\n\s*\n", outside(page))
    texts = [" ".join(block.split()) for block in blocks]
    return [text for text in texts if len(text.split()) >= 25]


def test_no_page_repeats_another():
    pages = collections.defaultdict(set)
    for page in PAGES:
        for text in paragraphs(page):
            pages[text].add(page)
    assert not [text for text, where in pages.items() if len(where) > 1]


def test_every_page_is_in_the_navigation():
    listed = re.findall(r": (\S+\.md)$", CONFIG, re.MULTILINE)
    assert sorted(f"docs/{page}" for page in listed) == sorted(
        PAGES.keys() - {"README.md"}
    )


def test_pictures_are_used_and_small():
    text = "".join(PAGES.values())
    images = [*(DOCS / "images").iterdir()]
    unused = [image.name for image in images if image.name not in text]
    assert not unused
    assert sum(image.stat().st_size for image in images) < 1.5e6


@pytest.mark.parametrize("package", [resnet_layers, train_loop])
def test_reference_has_every_public_name(package):
    page = PAGES[f"docs/reference/{package.__name__}.md"]
    entries = re.findall(r"^::: [\w.]*?(\w+)$", page, re.MULTILINE)
    entries += re.findall(r"^`(\w+)`$", page, re.MULTILINE)
    assert package.__all__
    assert not {*package.__all__} - {*entries}


def test_reference_has_every_flag():
    text = filled("docs/reference/command-line.md")
    for field in dataclasses.fields(Settings):
        name = flag_name(field.name)
        assert f"### --{name} {{ #{name} }}" in text


def test_reference_has_every_recipe():
    text = filled("docs/reference/recipes.md")
    for name, recipe in RECIPES.items():
        assert f"## {name} {{ #{name} }}" in text
        assert generate.linked(recipe.source) in text


def test_model_zoo_has_every_variant_once():
    page = PAGES["docs/reference/models.md"]
    lines = generate.VARIANT_LINE.findall(page)
    listed = re.findall(r"\w+", "".join(lines))
    assert sorted(listed) == sorted(VARIANTS)
    assert COUNTED.keys() == PUBLISHED.keys() == VARIANTS.keys()
    assert f"{len(VARIANTS)} names" in page


def test_counts_are_the_published_ones():
    counted = {name: COUNTED[name]["parameters"] for name in PARAMETERS}
    assert counted == PARAMETERS


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        *(pytest.param(n, marks=pytest.mark.slow) for n in COUNTED_NOW),
    ],
)
def test_counts_are_kept_as_counted(name):
    assert count(name) == COUNTED[name]


def test_weights_of_keras_are_those_that_exist():
    named = {
        name
        for name, known in PUBLISHED.items()
        if any(w["name"] == "imagenet" for w in known["weights"])
    }
    assert named == IMAGENET_FILES.keys()


def test_readme_names_variants_that_exist():
    [table] = re.findall(r"\| Family .*?\n\n", PAGES["README.md"], re.DOTALL)
    assert len(table.splitlines()) == 8 + 2 + 1
    names = re.findall(r"`(\w+)`", table)
    assert len(names) > 20
    assert {*names} <= VARIANTS.keys()
    for page in ("README.md", "docs/index.md"):
        assert f"{len(VARIANTS)} ResNets" in PAGES[page]


@pytest.mark.slow
def test_page_has_every_file_of_a_run(trained, run):
    """Whatever a run and its modes write, under a name that the page has."""
    shown = trained.parent / "images/test/cat/0.jpeg"
    assert run("--mode=evaluate", f"--workdir={trained}").status == 0
    predict = ("--mode=predict", "--explain", f"--images={shown}")
    assert run(*predict, f"--workdir={trained}").status == 0
    page = PAGES["docs/reference/run-folder.md"]
    for path in trained.rglob("*"):
        first, *rest = path.relative_to(trained).parts
        assert f"`{first}`" in page or f"`{first}/`" in page, first
        if first == "report" and rest:
            assert path.stem in page or path.name in page, path


def test_page_has_every_key_of_a_run(trained):
    page = PAGES["docs/reference/run-folder.md"]
    lines = (trained / "metrics.jsonl").read_text().splitlines()
    keys = {key for line in lines for key in json.loads(line)}
    for name in ("config.json", "data.json"):
        keys |= json.loads((trained / name).read_text()).keys()
    assert {key for key in keys if f"`{key}`" not in page} == set()
