"""Lines of code (no blanks, comments or docstrings) by folder: the core that explains one picture, and what
stands around it.

python scripts/countlines.py
"""

import ast
import io
import tokenize
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent / "minisd"
# what explains one picture, in the reading order of ARCHITECTURE.md
CORE = {
    "": "request request_model conventions pipeline sampling guidance denoiser placement model engine",
    "config": "model families",
    "kernels": "reference attention",
    "models": "clip transformer unet vae fused",
    "samplers": "schedule scaling step ode sde noise",
    "text": "tokenizer conditioning",
    "weights_loader": "open detect derive keymap checkpoint",
}


def code_lines(path: Path) -> int:
    """Lines that hold a token other than a comment, outside docstrings."""
    source = path.read_text()
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                docstrings |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    quiet = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in quiet:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def main() -> None:
    core: dict[str, int] = defaultdict(int)
    around: dict[str, int] = defaultdict(int)
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        folder = name.split("/")[0] if "/" in name else "(top)"
        names = CORE.get("" if folder == "(top)" else folder, "").split()
        table = core if path.stem in names else around
        table[folder] += code_lines(path)
    for title, table in (("core", core), ("around", around)):
        print(f"{title:<10}{sum(table.values()):>6}")
        for folder, count in sorted(table.items()):
            print(f"  {folder:<16}{count:>6}")


if __name__ == "__main__":
    main()
