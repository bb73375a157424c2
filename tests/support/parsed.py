"""Entries of a contract looked up in the files of packages that are not installed, without importing them."""

import ast
import builtins
import functools
import importlib
from pathlib import Path

from sepo.hosts.contract import Entry


class Absent(Exception):
    """A name that a package does not have."""


class Parsed:
    """Packages unpacked in a directory; a base class from elsewhere is imported from this environment."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.tree = functools.cache(self._tree)

    def has(self, module: str) -> bool:
        return self._file(module) is not None

    def gap(self, entry: Entry) -> str | None:
        """Return what is missing of an entry, or None; the counterpart of ``contract.gap`` for installed packages."""
        try:
            node, *inner = self._member(entry.module, entry.path.split("."), on_instances=entry.on_instances)
            taken = self._parameters(*inner, node) if entry.parameters else None
        except Absent as error:
            return f"{entry} does not exist ({error})"
        lacking = [name for name in entry.parameters if taken is not None and name not in taken]
        return f"{entry} does not take {', '.join(lacking)}" if lacking else None

    def _file(self, module: str) -> Path | None:
        path = self.folder / module.replace(".", "/")
        return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)

    def _tree(self, module: str) -> ast.Module:
        file = self._file(module)
        if file is None:
            raise Absent(f"no module {module}")
        return ast.parse(file.read_text())

    def _bound(self, module: str, name: str):
        """Return the statement that binds a name in a module, and the module that has it, through its imports."""
        if name == "__file__":
            return self.tree(module), module
        imported = None
        for node in ast.walk(self.tree(module)):  # also in `if TYPE_CHECKING` and `try`
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name and node.col_offset == 0:
                return node, module
            targets = getattr(node, "targets", [getattr(node, "target", None)])
            if isinstance(node, ast.Assign | ast.AnnAssign) and name in [getattr(one, "id", None) for one in targets]:
                return node, module
            if isinstance(node, ast.ImportFrom) and name in [alias.asname or alias.name for alias in node.names]:
                (own,) = [alias.name for alias in node.names if (alias.asname or alias.name) == name]
                imported = self._absolute(module, node), own
        if imported is None:
            raise Absent(f"{module} has no {name}")
        where, own = imported
        if not self.has(where.split(".")[0]):
            return getattr(importlib.import_module(where), own), where
        return (self.tree(f"{where}.{own}"), where) if self.has(f"{where}.{own}") else self._bound(where, own)

    def _absolute(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module
        parts = module.split(".")
        package = parts if self._file(module).name == "__init__.py" else parts[:-1]
        base = package[: len(package) - node.level + 1]
        return ".".join([*base, *filter(None, [node.module])])

    def _member(self, module: str, path: list[str], *, on_instances: bool):
        """Return the node of a dotted name and where it stands: its module, after the class if it is a member."""
        node, where = self._bound(module, path[0])
        if len(path) == 1:
            return node, where
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call):  # an instance
            node, where = self._bound(where, node.value.func.id)
        for kind, there in self._lineage(node, where):
            if not isinstance(kind, ast.ClassDef):
                if hasattr(kind, path[1]):
                    return getattr(kind, path[1]), there
                continue
            for member in kind.body:
                names = [getattr(member, "name", None), getattr(getattr(member, "target", None), "id", None)]
                names += [getattr(target, "id", None) for target in getattr(member, "targets", [])]
                if path[1] in names:
                    return member, there
            used = (item for item in ast.walk(kind) if isinstance(item, ast.Attribute) and item.attr == path[1])
            if on_instances and any(isinstance(item.value, ast.Name) and item.value.id == "self" for item in used):
                return kind, there
        raise Absent(f"{path[0]} has no {path[1]}")

    def _lineage(self, kind, module: str):
        """Yield a class and its bases with their modules; of bases from elsewhere, the imported class."""
        yield kind, module
        for base in getattr(kind, "bases", []):
            if isinstance(base, ast.Name) and not hasattr(builtins, base.id):
                yield from self._lineage(*self._bound(module, base.id))

    def _parameters(self, module: str, node) -> set[str] | None:
        """Return the parameters of a function, of ``__init__`` of a class, or the fields of a data class.

        None if a function passes everything on.
        """
        if isinstance(node, ast.FunctionDef):
            if node.args.vararg and node.args.kwarg:
                return None
            return {one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}
        fields: set[str] = set()
        for kind, _ in self._lineage(node, module):
            for member in getattr(kind, "body", []):
                if isinstance(member, ast.FunctionDef) and member.name == "__init__":
                    return self._parameters(module, member)
                if isinstance(member, ast.AnnAssign):
                    fields.add(member.target.id)
        return fields
