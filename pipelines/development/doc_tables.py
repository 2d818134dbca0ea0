"""Write the tables of docs/ that follow from declarations: parameters of methods, model families.

`python -m mesa_lm.pipelines.development.doc_tables docs` writes them between their marks, such as
`<!-- parameters: rerope -->` and `<!-- end -->`; `make doc-tables` calls it.
"""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

from mesa_lm.errors import UsageError
from mesa_lm.methods.base import Method
from mesa_lm.methods.parameters import allowed, declared
from mesa_lm.methods.registry import method_class
from mesa_lm.models.support import family_markdown, family_rows

# Code, whose marks are an example's, or a table between its marks.
BLOCK = re.compile(r"```.*?```|(<!-- (\w+)(?:: (\w+)(?:, (\w+))?)? -->\n).*?(\n<!-- end -->)", re.DOTALL)
TRAIN_LENGTH = 2048  # for which the values of rules are shown


def parameter_table(method: type[Method]) -> str:
    """Return a method's parameters as a Markdown table."""
    bound = method().bind(SimpleNamespace(model_type="llama", max_position_embeddings=TRAIN_LENGTH))
    lines = [f"| parameter | default | at T = {TRAIN_LENGTH} | allowed | meaning |", "|---|---|---|---|---|"]
    for name, declaration in declared(method).items():
        value = getattr(bound, name) if declaration.rule else ""
        default = declaration.shown.lower() if declaration.shown in ("None", "True", "False") else declaration.shown
        lines.append(f"| `{name}` | {default} | {value} | {allowed(method, name)} | {declaration.text} |")
    return "\n".join(lines)


def rewritten(text: str) -> str:
    """Return a page with its tables written anew.

    Raises:
        UsageError: A mark names no table.
    """

    def block(match: re.Match[str]) -> str:
        start, kind, name, variant, end = match.groups()
        if kind is None:
            return match.group()
        if kind == "parameters":
            return f"{start}{parameter_table(method_class(name, variant))}{end}"
        if kind == "families":
            return f"{start}{family_markdown(family_rows())}{end}"
        raise UsageError(f"no table {kind!r} (allowed: parameters, families)")

    return BLOCK.sub(block, text)


def main(folder: Path) -> None:
    """Write the tables of every page in a folder."""
    for page in sorted(folder.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        new = rewritten(text)
        if new != text:
            page.write_text(new, encoding="utf-8")
            print(page)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
