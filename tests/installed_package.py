"""A small package with methods, put where Python finds installed ones."""

from pathlib import Path

METHOD = '''
from dataclasses import dataclass
from typing import ClassVar

from mesa_lm.methods.base import Method
from mesa_lm.methods.geometry import Band
from mesa_lm.methods.parameters import parameter


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest(Method):
    """See the last keys.

    Source: a paper to be.
    """

    name: ClassVar[str] = "nearest"

    keys: int = parameter(lambda T: T // 4, "last keys that a query sees", shown="T/4", at_least=1)

    def is_untouched(self, kv_len, cached):
        return kv_len <= self.keys

    def bands(self, index, extent):
        return (Band((index - self.keys + 1).clamp(min=0), index + 1, index, lambda key: key),)
'''


def install_package(site: Path, name: str, code: str, entries: dict[str, str]) -> None:
    """Write a package and what an installer notes of it.

    Args:
        site: A folder on Python's path.
        name: Of the package; its version is 1.2.
        code: Of its one module.
        entries: Names and values of its entry points among the methods.
    """
    (site / f"{name}.py").write_text(code)
    about = site / f"{name}-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    points = "".join(f"{entry} = {value}\n" for entry, value in entries.items())
    (about / "entry_points.txt").write_text(f"[mesa_lm.methods]\n{points}")
