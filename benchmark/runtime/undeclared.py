"""What a strategy's source names that its values may depend on unseen: the net under benchmark/runtime/watch.py.

The audit hook sees neither environment variables nor files that C++ or Rust opens. So a file that names the
environment, a module for networks or processes, or that hands such a reader a path which is no asset of its strategies
counts as reading what it has not declared. It is looked for in the strategy's file and in the helpers that it imports.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from benchmark.runtime.identity import OwnCode, SourceFile, parse
from benchmark.runtime.watch import Undeclared

ENVIRONMENT = ("os.environ", "os.environb", "os.getenv", "os.getenvb", "os.path.expandvars", "posix.environ")
SERVER_MODULES = {
    "aiohttp",
    "anthropic",
    "boto3",
    "botocore",
    "ftplib",
    "google.cloud",
    "grpc",
    "http.client",
    "httpx",
    "imaplib",
    "openai",
    "paramiko",
    "poplib",
    "psycopg",
    "psycopg2",
    "pymongo",
    "redis",
    "requests",
    "smtplib",
    "socket",
    "socketserver",
    "ssl",
    "telnetlib",
    "urllib.request",
    "urllib3",
    "websocket",
    "websockets",
    "xmlrpc.client",
}
PROCESS_MODULES = {"joblib", "loky", "multiprocess", "multiprocessing", "pexpect", "pty", "sh", "subprocess"}
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)  # says who asks, not what
PROCESS_CALLS = re.compile(
    r"os\.(system|popen|fork|forkpty|posix_spawnp?|spawn\w+|exec\w+)|concurrent\.futures\.ProcessPoolExecutor"
)
# That open files by themselves, without Python.
READERS = re.compile(
    r"pandas\.read_(parquet|orc|feather|hdf)"
    r"|pyarrow\.(\w+\.)*(read_\w+|open_(?!file|stream)\w+|ParquetFile|ParquetDataset|memory_map|OSFile|input_stream)"
    r"|pyarrow\.dataset\.(dataset|\w+_dataset)|pyarrow\.fs\.(\w+)(\.\w+)?"
    r"|safetensors(\.\w+)*\.(load_file|load_model|safe_open)"
    r"|polars\.(read|scan)_\w+"
    r"|duckdb\.\w+"
    r"|(fasttext|kenlm)\.(load_model|Model|LanguageModel)"
    r"|cv2\.(imread\w*|VideoCapture|FileStorage)"
    r"|h5py\.File|lmdb\.open|zarr\.open\w*|faiss\.read_\w+|onnxruntime\.InferenceSession"
    r"|torch\.jit\.load|torchvision\.io\.(read|decode)_\w+"
    r"|sentencepiece\.SentencePieceProcessor|tokenizers\.\w+\.from_\w+"
    r"|(lightgbm|xgboost)\.Booster"
    r"|benchmark\.tables\.read_\w+|benchmark\.language\.load_language_model"
    # Or only look whether a file is there, and how large: what is made of it depends on that.
    r"|os\.path\.(exists|lexists|isfile|isdir|getsize|getmtime)|os\.(stat|lstat|access|listdir|scandir|walk)"
    r"|glob\.i?glob"
)
IN_MEMORY = ("io.BytesIO", "io.StringIO", "pyarrow.BufferReader")
METHODS_THAT_READ = ("from_pretrained", "from_file", "load_model")  # of whatever
METHODS_OF_PATHS = ("exists", "is_file", "is_dir", "iterdir", "rglob")  # that look whether something is there


def named_in_source(code: OwnCode, assets: Iterable[str]) -> list[Undeclared]:
    """Return what a file of strategies and its helpers name; `assets` are its strategies' options that are assets."""
    trees = {str(each.path): _Names(each, parse(each)) for each in code.files}
    known = _asset_names(list(trees.values()), frozenset(assets))
    found: dict[Undeclared, None] = {}
    for tree in trees.values():
        found |= dict.fromkeys(_environment(tree))
        found |= dict.fromkeys(_modules(tree))
        found |= dict.fromkeys(_readers(tree, known))
    return list(found)


def is_of_server(found: Undeclared) -> bool:
    """Tell whether something is what a signal that declares `asks_server` needs: a server, and the key to it."""
    return found.kind == "server" or (found.kind == "variable" and SECRET.search(found.name) is not None)


def spell_undeclared(strategy: str, inputs: Sequence[Undeclared]) -> str:
    """Say in one line what a strategy ("filter 'mine'") reads undeclared, what follows, and how to declare it."""
    first, *others = inputs
    if first.kind == "script":
        return (
            f"{strategy} is of a script or notebook: it runs in this process and nothing of it is "
            "cached; put it into a file of its own and name that in plugins= to have it cached"
        )
    stem = re.sub(r"\W", "_", PurePath(first.name).stem)
    stem = stem if stem.isidentifier() else "words"
    what, remedy = {
        "file": (
            f"reads {first.name}",
            f'declare assets={{"{stem}": "{PurePath(first.name).name}"}} and take the path from the argument '
            f"`{stem}: str | None = None`",
        ),
        "variable": (f"reads the environment variable {first.name}", "make it an option of the strategy"),
        "server": (f"asks a server ({first.name})", "ask it in a signal that declares asks_server=True"),
        "process": (f"runs another program ({first.name})", "bring what it answers as a parquet file (signals=)"),
        "code": (f"imports {first.name}", "import it by an ordinary import statement"),
    }[first.kind]
    more = f" and {len(others)} more" if others else ""
    return f"{strategy} {what}{more}, which it has not declared, so nothing of it is cached; {remedy}"


@dataclass
class _Names:
    """A file's tree, with what its names stand for."""

    source: SourceFile
    tree: ast.Module
    aliases: dict[str, str] = field(default_factory=dict)  # name -> dotted name of what was imported
    parents: dict[ast.AST, ast.AST] = field(default_factory=dict)
    imports: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for node in ast.walk(self.tree):
            self.parents |= dict.fromkeys(ast.iter_child_nodes(node), node)
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self.imports.append(alias.name)
                    self.aliases[alias.asname or alias.name.partition(".")[0]] = (
                        alias.name if alias.asname else alias.name.partition(".")[0]
                    )
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                self.imports.append(node.module)
                for alias in node.names:
                    self.imports.append(f"{node.module}.{alias.name}")
                    self.aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def dotted(self, node: ast.AST) -> str:
        """Return the dotted name of what an expression names, empty where it is no imported thing."""
        if isinstance(node, ast.Name):
            return self.aliases.get(node.id, "")
        if isinstance(node, ast.Attribute) and (base := self.dotted(node.value)):
            return f"{base}.{node.attr}"
        return ""

    def scope(self, node: ast.AST) -> ast.AST:
        """Return the function, or file, that a node stands in."""
        while not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Module):
            node = self.parents[node]
        return node

    def references(self) -> Iterator[tuple[ast.AST, str]]:
        """Yield every expression that names an imported thing, whole chains of attributes only."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Name | ast.Attribute) and not isinstance(self.parents[node], ast.Attribute):
                inner: ast.AST = node
                while isinstance(inner, ast.Attribute) and not self.dotted(inner):
                    inner = inner.value
                if name := self.dotted(inner):
                    yield inner, name


def _environment(names: _Names) -> Iterator[Undeclared]:
    for node, dotted in names.references():
        part = next((each for each in ENVIRONMENT if dotted == each or dotted.startswith(f"{each}.")), None)
        if part is not None:
            yield Undeclared("variable", _variable(names, node) or part)


def _variable(names: _Names, node: ast.AST) -> str:
    """Return the name of the variable that is read, where it stands there."""
    outer = names.parents.get(node)
    arguments: list[ast.expr] = []
    if isinstance(outer, ast.Subscript):
        arguments = [outer.slice]
    elif isinstance(outer, ast.Call) and outer.func is node:
        arguments = outer.args
    elif isinstance(outer, ast.Compare) and outer.comparators == [node]:
        arguments = [outer.left]
    first = arguments[0] if arguments else None
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""


def _modules(names: _Names) -> Iterator[Undeclared]:
    for name in names.imports:
        parts = name.split(".")
        spelt = {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
        for kind, modules in (("server", SERVER_MODULES), ("process", PROCESS_MODULES)):
            if named := spelt & modules:
                yield Undeclared(kind, f"the module {min(named)}")
    for _, dotted in names.references():
        if PROCESS_CALLS.fullmatch(dotted):
            yield Undeclared("process", dotted)
    for node in ast.walk(names.tree):
        if isinstance(node, ast.Call) and (
            names.dotted(node.func) == "importlib.import_module" or getattr(node.func, "id", "") == "__import__"
        ):
            is_plain = bool(node.args) and isinstance(node.args[0], ast.Constant)
            yield from () if is_plain else (Undeclared("code", "a module whose name is computed"),)


def _readers(names: _Names, known: dict[ast.AST, set[str]]) -> Iterator[Undeclared]:
    for node, dotted in names.references():
        if not READERS.fullmatch(dotted):
            continue
        outer = names.parents[node]
        if isinstance(outer, ast.alias | ast.Import | ast.ImportFrom):
            continue
        if isinstance(outer, ast.Call) and outer.func is node:
            yield from _unless_asset(names, outer, known, dotted)
        elif not _is_annotation(names, node):
            yield Undeclared("file", f"what {dotted} is handed")
    for call in ast.walk(names.tree):
        method = _called_method(call)
        if (
            isinstance(call, ast.Call)
            and method in METHODS_THAT_READ
            and not READERS.fullmatch(names.dotted(call.func))
        ):
            yield from _unless_asset(names, call, known, method)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and method in METHODS_OF_PATHS:
            path = call.func.value
            if names.dotted(call.func) == "" and not _is_from_asset(names, path, known):
                spelt = f"{ast.unparse(path)} (line {call.lineno} of {names.source.path.name}, by {method})"
                yield Undeclared("file", spelt)


def _called_method(node: ast.AST) -> str:
    return node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""


def _unless_asset(names: _Names, call: ast.Call, known: dict[ast.AST, set[str]], reader: str) -> Iterator[Undeclared]:
    """Yield a file that a reader is handed, unless it comes from an asset, or is no file."""
    given = [*call.args[:1], *(each.value for each in call.keywords if each.arg not in ("columns", "engine"))][:1]
    if not given:
        return
    first = given[0]
    if isinstance(first, ast.Constant) and not isinstance(first.value, str | bytes):
        return
    if isinstance(first, ast.Call) and names.dotted(first.func) in IN_MEMORY:
        return
    if not _is_from_asset(names, first, known):
        spelt = str(first.value) if isinstance(first, ast.Constant) else ast.unparse(first)
        yield Undeclared("file", f"{spelt} (line {call.lineno} of {names.source.path.name}, by {reader})")


def _is_annotation(names: _Names, node: ast.AST) -> bool:
    inner: ast.AST | None = node
    outer = names.parents.get(node)
    while outer is not None and not isinstance(outer, ast.stmt | ast.arg):
        outer, inner = names.parents.get(outer), outer
    return getattr(outer, "annotation", None) is inner or getattr(outer, "returns", None) is inner


# --- Which names hold a path of an asset -----------------------------------------------------------------------------


def _asset_names(files: list[_Names], assets: frozenset[str]) -> dict[ast.AST, set[str]]:
    """Return by function (or file) the names that hold an asset's path, or come from one.

    Those are the arguments that are called as an asset, what is made from them, and an argument that is an asset's
    wherever the function is called.
    """
    known: dict[ast.AST, set[str]] = defaultdict(set)
    functions: dict[str, list[ast.FunctionDef | ast.AsyncFunctionDef]] = defaultdict(list)
    calls: dict[str, list[tuple[_Names, ast.Call]]] = defaultdict(list)
    for names in files:
        for node in ast.walk(names.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions[node.name].append(node)
                if names is files[0]:  # the strategies' own; helpers are handed theirs
                    known[node] |= {each.arg for each in _arguments(node)} & assets
            elif isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                calls[name].append((names, node))
    size = -1
    while size != (size := sum(map(len, known.values()))):
        for names in files:
            for node in ast.walk(names.tree):
                _pass_on(names, node, known)
        for name, (function, *others) in functions.items():
            if others or not calls[name]:
                continue
            for argument in _arguments(function):
                given = [_given(call, function, argument.arg) for _, call in calls[name]]
                if all(
                    each is not None and _is_from_asset(at, each, known)
                    for each, (at, _) in zip(given, calls[name], strict=True)
                ):
                    known[function].add(argument.arg)
    return known


def _pass_on(names: _Names, node: ast.AST, known: dict[ast.AST, set[str]]) -> None:
    """Let what is made from a name that is known be known."""
    pairs: list[tuple[ast.expr, ast.expr]] = []
    if isinstance(node, ast.Assign):
        pairs = [(target, node.value) for target in node.targets]
    elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
        pairs = [(node.target, node.value)]
    elif isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
        pairs = [(node.target, node.iter)]
    elif isinstance(node, ast.withitem) and node.optional_vars is not None:
        pairs = [(node.optional_vars, node.context_expr)]
    for target, value in pairs:
        if _is_from_asset(names, value, known):
            scope = names.scope(target)
            known[scope] |= {each.id for each in ast.walk(target) if isinstance(each, ast.Name)}


def _is_from_asset(names: _Names, node: ast.expr, known: dict[ast.AST, set[str]]) -> bool:
    """Tell whether an expression is made from a name that is known here or further out."""
    used = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    scope = names.scope(node)
    while True:
        if used & known[scope]:
            return True
        if isinstance(scope, ast.Module):
            return False
        scope = names.scope(names.parents[scope])


def _arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    return [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]


def _given(call: ast.Call, function: ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> ast.expr | None:
    """Return what a call gives for an argument of a function."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    positional = [each.arg for each in (*function.args.posonlyargs, *function.args.args)]
    if positional[:1] in (["self"], ["cls"]):
        positional = positional[1:]
    place = positional.index(name) if name in positional else len(call.args)
    return call.args[place] if place < len(call.args) else None
