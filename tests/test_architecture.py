"""The structure of the package: imports between modules, and limits on sizes, read from the source with `ast`."""

import ast
from collections.abc import Iterator
from pathlib import Path

import tok1d

ROOT = Path(tok1d.__file__).parent
FILES = {
    ".".join(("tok1d", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
TREES = {module: ast.parse(path.read_text()) for module, path in FILES.items()}
MAX_TOP_FILES = 8
MAX_PARAMETERS = 12
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 400
MAX_ANY = 151

Function = ast.FunctionDef | ast.AsyncFunctionDef


def listing(found: list[str]) -> str:
    """What an assertion shows."""
    return "\n".join(["", *found])


def imports(tree: ast.AST, module: str) -> Iterator[tuple[str, str, int]]:
    """The imports of our own anywhere in a file: (module, imported name or "", line); not those for type checkers."""
    skipped = {id(inner) for node in ast.walk(tree) if is_type_checking(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, "", node.lineno) for alias in node.names if is_own(alias.name))
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}, line {node.lineno}: a relative import"
            for alias in node.names if is_own(node.module or "") else ():
                inner = f"{node.module}.{alias.name}"
                yield (inner, "", node.lineno) if inner in FILES else (str(node.module), alias.name, node.lineno)


def is_own(module: str) -> bool:
    return module.split(".")[0] == "tok1d"


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def package(module: str) -> str:
    """The package or file at the top that a module belongs to; the top itself is "tok1d"."""
    return ".".join(module.split(".")[:2])


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def graph(of: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one node (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(of.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            component = stack[at:]
            del stack[at:]
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(of):
        if node not in index:
            visit(node)
    return found


def test_components_are_found() -> None:
    assert graph({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c"]]
    assert graph({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_packages_do_not_import_in_circles() -> None:
    edges: dict[str, set[str]] = {package(module): set() for module in FILES}
    for module, tree in TREES.items():
        for target, _, _ in imports(tree, module):
            if package(target) not in (package(module), "tok1d"):
                edges[package(module)].add(package(target))
    assert not graph(edges), listing([" <-> ".join(component) for component in graph(edges)])


def test_modules_do_not_import_in_circles() -> None:
    edges = {module: {target for target, _, _ in imports(tree, module)} - {"tok1d"} for module, tree in TREES.items()}
    assert not graph(edges), listing([" <-> ".join(component) for component in graph(edges)])


def test_files_at_the_top_are_few() -> None:
    files = sorted(path.name for path in ROOT.glob("*.py"))
    assert len(files) <= MAX_TOP_FILES, listing(files)


def test_functions_import_our_own_modules_in_the_command_line_alone() -> None:
    found = [
        f"{module}, line {line}: {target} in {function.name}"
        for module, tree in TREES.items()
        if package(module) != "tok1d.cli"
        for function in functions(tree)
        for target, _, line in imports(function, module)
    ]
    assert not found, listing(found)


def test_no_module_imports_a_private_name_of_another() -> None:
    found = [
        f"{module}, line {line}: {target}.{name}"
        for module, tree in TREES.items()
        for target, name, line in imports(tree, module)
        if name.startswith("_") and not name.startswith("__")
    ]
    assert not found, listing(found)


def test_functions_take_few_parameters() -> None:
    """But for conversions, whose keyword-only parameters declare the options of `tok1d convert`."""
    found = []
    for module, tree in TREES.items():
        for function in functions(tree):
            args = function.args
            if module.startswith("tok1d.zoo.adapters.") and function.name.startswith("convert_"):
                assert len(args.args) == 1
                continue
            count = len([*args.posonlyargs, *args.args, *args.kwonlyargs, *filter(None, (args.vararg, args.kwarg))])
            if count > MAX_PARAMETERS:
                found.append(f"{module}, line {function.lineno}: {function.name} takes {count}")
    assert not found, listing(found)


def test_functions_are_short() -> None:
    found = []
    for module, tree in TREES.items():
        for function in functions(tree):
            lines = (function.end_lineno or function.lineno) - function.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                found.append(f"{module}, line {function.lineno}: {function.name} has {lines} lines")
    assert not found, listing(found)


def test_files_are_short() -> None:
    lengths = {module: len(path.read_text().splitlines()) for module, path in FILES.items()}
    found = [f"{module}: {length} lines" for module, length in lengths.items() if length > MAX_FILE_LINES]
    assert not found, listing(found)


def test_types_are_rarely_any() -> None:
    counts = {
        module: sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(tree))
        for module, tree in TREES.items()
    }
    total = sum(counts.values())
    most = sorted((module for module in counts if counts[module]), key=lambda module: -counts[module])
    assert total <= MAX_ANY, listing([f"{total} in all", *(f"{module}: {counts[module]}" for module in most)])
