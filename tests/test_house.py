"""The rules of the house: one-way imports, exported names, one list of versions, a README that runs."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support.paths import ROOT

import thinksound
from thinksound.cli import build_parser
from thinksound.presets import LIGHT, MMAUDIO, MMAUDIO_TINY, TINY

PACKAGE = ROOT / "thinksound"

# Each may import only what stands before it, and itself: those of one line know nothing of each other.
ORDER = [
    {"errors", "json_files", "progress", "rates"},
    {"sampling", "media", "models", "checkpoints", "runtime", "request"},
    {"presets", "encoders"},
    {"families"},
    {"result", "batches"},
    {"pipeline"},
    {"loading"},
    {"serving"},
    {"synthetic"},
    {"data"},
    {"training"},
    {"evaluation"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}


def imported_parts(path: Path) -> set[str]:
    """Top-level parts of the package that a module imports, lazily or not."""
    here = path.relative_to(PACKAGE).parts
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = list(here[: len(here) - node.level])
            target = base + (node.module.split(".") if node.module else [])
            parts |= {target[0]} if target else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("thinksound"):
            parts.add((node.module or "").split(".")[1])
    return parts - {"__version__"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if here == "__init__":
        return
    assert here in RANK, f"{here} has no place in the order"
    for part in imported_parts(path):
        assert part == here or RANK[part] < RANK[here], f"{path.name} imports {part}, which builds on it"


NO_NETWORKS = ("checkpoints", "runtime", "sampling", "media")  # rooms that name no network


@pytest.mark.parametrize("room", NO_NETWORKS)
def test_rooms_below_the_families_know_no_network(room):
    paths = list((PACKAGE / room).rglob("*.py"))
    imported = set().union(*(imported_parts(path) for path in paths))
    assert paths and imported <= {room, "errors", "json_files", "progress", "rates"}


NETWORK_ROOMS = ("models", "encoders")
# The published VAE is initialised layer by layer, by the kind of each layer.
LAYER_CHECKS = {"training/vae.py": {"WeightNormConv", "WeightNormConvTranspose", "ResidualUnit"}}


def classes_of(*rooms: str) -> set[str]:
    trees = [ast.parse(path.read_text()) for room in rooms for path in (PACKAGE / room).rglob("*.py")]
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def asked_kinds(tree: ast.AST) -> set[str]:
    """Names of the classes that a module tells objects apart by; those of PyTorch's ``nn`` do not count."""
    asked: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            asked += node.args[1:]
        elif isinstance(node, ast.MatchClass):
            asked.append(node.cls)
        elif isinstance(node, ast.Compare) and any(
            isinstance(part, ast.Call) and ast.unparse(part.func) == "type"
            for part in (node.left, *node.comparators)
        ):
            asked += [node.left, *node.comparators]
    parts = [part for each in asked for part in ast.walk(each)]
    return {part.id for part in parts if isinstance(part, ast.Name)} | {
        part.attr
        for part in parts
        if isinstance(part, ast.Attribute) and ast.unparse(part.value) not in ("nn", "torch.nn")
    }


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(x, MMDiT)",
        "isinstance(x, (int, mmdit.MMDiT))",
        "issubclass(kind, MMDiT | AudioVAE)",
        "type(x) is MMDiT",
        "match x:\n    case MMDiT():\n        pass",
    ],
)
def test_each_way_of_asking_for_a_kind_is_found(code):
    assert "MMDiT" in asked_kinds(ast.parse(code))


def test_kinds_of_networks_are_told_apart_by_their_families_alone():
    kinds = classes_of(*NETWORK_ROOMS)
    assert {"MMDiT", "AudioVAE", "MetaCLIP", "Synchformer"} <= kinds
    found = {}
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] not in ("families", "models"):
            asked = asked_kinds(ast.parse(path.read_text())) & kinds
            if asked:
                found[path.relative_to(PACKAGE).as_posix()] = asked
    assert found == LAYER_CHECKS


def test_no_module_is_a_drawer():
    names = {path.stem for path in PACKAGE.rglob("*.py")}
    assert not names & {"utils", "helpers", "misc", "common"}


def test_exported_names_are_the_public_ones_and_resolve():
    assert sorted(thinksound.__all__) == sorted(thinksound._HOME)
    for name in thinksound.__all__:
        assert getattr(thinksound, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = thinksound.Nonsense


def test_importing_loads_no_heavy_library_and_prints_nothing():
    heavy = "{'torch', 'transformers', 'av', 'numpy'}"
    code = f"import sys, thinksound, thinksound.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


# Dependencies whose module has another name.
MODULES = {"open_clip_torch": "open_clip", "pillow": "PIL"}


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith(("#", "-")))


def test_every_dependency_is_pinned_inside_of_its_range_and_imported():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {(r := Requirement(text)).name: r for text in project["dependencies"]}
    pinned = pins("requirements.txt")
    assert set(pinned) == set(wanted)
    for name, version in pinned.items():
        assert wanted[name].specifier.contains(version), f"{name}=={version} is outside of {wanted[name]}"

    source = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    # Used by transformers to read T5's spiece.model, and by open_clip; nothing else needs them.
    for name in set(pinned) - {"protobuf", "torchvision"}:
        assert re.search(rf"^\s*(import|from) {MODULES.get(name, name)}\b", source, re.M), (
            f"nothing imports {name}"
        )


def test_every_import_is_declared():
    """What the package imports is a dependency, part of an extra, or named here with the reason."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {Requirement(text).name for texts in listed for text in texts}
    declared |= {module for name, module in MODULES.items() if name in declared}
    declared |= {"hf_xet"}  # comes with huggingface_hub on most machines, and is looked for before use
    serving = {"requests", "urllib3"}  # come with cog, which runs predict.py and with it this folder
    for path in sorted(PACKAGE.rglob("*.py")):
        modules = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add(node.module or "")
        foreign = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names
        allowed = declared | (serving if path.parent.name == "serving" else set())
        assert foreign <= allowed, (
            f"{path.relative_to(ROOT)} imports {foreign - allowed}, which is not declared"
        )


def test_every_extra_is_pinned_inside_of_its_range():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = pins("requirements-dev.txt")
    for text in (text for extra in project["optional-dependencies"].values() for text in extra):
        wanted = Requirement(text)
        assert wanted.specifier.contains(pinned[wanted.name]), f"{wanted} and {pinned[wanted.name]}"


def test_what_is_installed_is_what_is_pinned():
    from importlib.metadata import version

    for name, wanted in (pins("requirements.txt") | pins("requirements-dev.txt")).items():
        assert version(name).split("+")[0] == wanted, name


def test_changelog_names_the_version():
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    released = [heading for heading in headings if heading != "Unreleased"]
    assert released[0] == thinksound.__version__ and "Unreleased" not in headings[1:]


def test_scripts_are_short_executable_and_listed():
    listed = (ROOT / "scripts" / "README.md").read_text()
    for script in (ROOT / "scripts").iterdir():
        if script.suffix or script.name == "README.md":
            continue
        assert script.stat().st_mode & 0o111, f"{script.name} is not executable"
        assert len(script.read_text().splitlines()) <= 30, f"{script.name} is long"
        assert f"`{script.name}" in listed, f"{script.name} is not in scripts/README.md"


def subpackages(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("*/__init__.py")}


def test_readme_tree_names_every_folder_of_the_package():
    tree = (ROOT / "README.md").read_text().split("## What is where")[1].split("```")[1]
    package, tests = tree.split("\nthinksound/\n")[1].split("\ntests/")
    lines = {name: line for line in package.splitlines() for name in re.findall(r"(\w+)/ ", line)}
    nested = {name: subpackages(PACKAGE / name) for name in subpackages(PACKAGE)}
    assert set(lines) == set(nested) | set().union(*nested.values())
    for name, inner in nested.items():
        assert all(f" {each}/ " in lines[name] for each in inner), f"{name}/ holds {inner}"
    assert all(f" {path.name}/ " in tests for path in (ROOT / "tests" / "support", ROOT / "tests" / "parity"))


def test_each_folder_of_tests_is_named_after_one_of_the_package():
    others = {"support", "parity", "fuzzing", "__pycache__"}
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()} - others
    assert folders <= subpackages(PACKAGE), f"{folders - subpackages(PACKAGE)}: not a folder of the package"
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    twice = {name for name in names if names.count(name) > 1}
    assert not twice, f"{twice}: pytest imports test files by their names alone"


@pytest.mark.parametrize("page", ["README.md", "docs/http.md"])
def test_documented_guidance_is_that_of_the_presets(page):
    (cell,) = re.findall(
        r"^\| `(?:--cfg-scale X|cfg_scale)` \|.*?\b(\d.*?) \|", (ROOT / page).read_text(), re.M
    )
    cog = page == "docs/http.md"  # Cog has one default, the published one
    others = f", `tiny` {TINY.guidance_scale:g}, `mmaudio` {MMAUDIO_TINY.guidance_scale:g}"
    assert cell == f"{LIGHT.guidance_scale:g}" + ("" if cog else others)
    assert {preset.guidance_scale for preset in MMAUDIO} == {MMAUDIO_TINY.guidance_scale}


def test_documented_commands_can_be_parsed():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "weights").glob("*.md")]
    blocks = re.findall(r"^```sh\n(.*?)^```", "\n".join(page.read_text() for page in pages), re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(part, comments=True) for line in lines for part in re.split("&+", line)]
    commands = [
        each[each.index("thinksound") + 1 :]
        for each in words
        if "thinksound" in each and each[0] in ("thinksound", "torchrun", "python")
    ]
    assert len(commands) > 20
    for command in commands:
        build_parser().parse_args(command)


def test_links_lead_somewhere_and_nothing_is_left_to_fill_in():
    pages = [path for folder in (".", "docs", "weights", "scripts") for path in (ROOT / folder).glob("*.md")]
    assert len(pages) >= 7
    for path in pages:
        text = path.read_text()
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
        assert not re.search(r"^[A-Z_]{3,}$", text, re.M), path
