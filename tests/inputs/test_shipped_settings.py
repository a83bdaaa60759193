"""The settings files and their page that are shipped say what the schema says."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelagent.inputs.config import Device, Model, Section, Settings, load, parse

ROOT = Path(__file__).parents[2]
MAIN = ROOT / "config" / "modelagent.toml"
PAGE = ROOT / "docs" / "config.md"


def settings_of(section: type[Section], at: str) -> Iterator[tuple[str, str, str]]:
    """(table, key, description) of every setting."""
    for key, field in section.model_fields.items():
        if key == "models" and section is Settings:
            yield from settings_of(Model, "models.digits")
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from settings_of(field.annotation, f"{at}.{key}".lstrip("."))
        else:
            yield at, key, field.description or ""


EVERY = list(settings_of(Settings, ""))


def test_the_main_file_as_shipped_is_good_and_all_defaults() -> None:
    assert load(MAIN, conf_d=False) == Settings()


def test_the_main_file_with_every_line_switched_on_shows_the_defaults() -> None:
    text = re.sub(r"(?m)^#(?=[\[a-z_0-9.]+\]?( = .*)?$)", "", MAIN.read_text(encoding="utf-8"))
    document = tomllib.loads(text)
    for table, key, _ in EVERY:
        section = document
        for part in table.split("."):
            section = section[part]
        assert key in section, f"[{table}] {key} is missing"
    shown = parse(document, MAIN)
    assert shown.models == {"digits": Model()}
    assert shown.model_copy(update={"models": {}, "device": Device(id="x")}) == Settings(device=Device(id="x"))


@pytest.mark.parametrize(("table", "key", "description"), EVERY, ids=[f"{table}.{key}" for table, key, _ in EVERY])
def test_every_setting_has_its_comment_and_its_row(table: str, key: str, description: str) -> None:
    assert description
    assert f"# {description}\n#{key} = " in MAIN.read_text(encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8").split(f"\n## [{table.replace('digits', '<name>')}]\n")[1].split("\n## ")[0]
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{key}` |")]
    assert row.endswith(f" | {description} |")


@pytest.mark.parametrize("file", sorted((ROOT / "config" / "examples").glob("*.toml")), ids=lambda file: file.stem)
def test_every_example_is_good(file: Path) -> None:
    assert load(file, conf_d=False) != Settings()


def test_the_refusal_on_the_page_is_the_real_one() -> None:
    path = Path("/etc/modelagent/conf.d/10-line.toml")
    with pytest.raises(Exception, match="found 'fast'") as refused:
        parse({"models": {"digits": {"source": {"fps": "fast"}}}}, path)
    assert f"    {refused.value}\n" in PAGE.read_text(encoding="utf-8")
