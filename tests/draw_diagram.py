"""Draw the phase diagram from the table into docs/architecture.md: `python tests/draw_diagram.py`."""

from pathlib import Path

from modelagent.core import machine

PAGE = Path(__file__).parent.parent / "docs" / "architecture.md"
BEGIN, END = "<!-- phase diagram -->\n", "<!-- /phase diagram -->"
FENCE = "```"


def drawn(page: str) -> str:
    """The diagram that a page shows."""
    block = page.split(BEGIN)[1].split(END, maxsplit=1)[0].strip()
    return block.removeprefix(f"{FENCE}mermaid\n").removesuffix(FENCE)


def redrawn(page: str) -> str:
    """The page with the table's diagram."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}{FENCE}mermaid\n{machine.diagram()}{FENCE}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(redrawn(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
