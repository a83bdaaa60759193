"""Every setting is read by somebody: a line in the settings file that does nothing would be a lie."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pydantic
import pytest

from modelagent.inputs import model_schema, schema
from modelagent.inputs.fields import Section

SOURCE = Path(schema.__file__).resolve().parents[1]
DECLARED = {SOURCE / "inputs" / f"{name}.py" for name in ("schema", "model_schema", "fields")}


def sections() -> Iterator[type[pydantic.BaseModel]]:
    for thing in {**vars(model_schema), **vars(schema)}.values():
        if isinstance(thing, type) and issubclass(thing, Section) and thing is not Section:
            yield thing


@pytest.fixture(scope="module")
def read() -> set[str]:
    """Names of attributes that some code reads; those that other code reads by name (getattr, a loop over names)."""
    found: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                # In the schema itself a property or a check reads what it has; that is how `wish` reads a model.
                found.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and path not in DECLARED:
                found.add(node.value)
    return found


def test_every_setting_is_read_by_some_code(read: set[str]) -> None:
    unread = [
        f"{section.__name__}.{name}" for section in sections() for name in section.model_fields if name not in read
    ]
    assert unread == []


def test_a_limit_shares_its_name_with_a_releases_and_is_read_all_the_same() -> None:
    """Where one name stands for two things the name alone proves nothing: this one is looked at where it is used."""
    text = (SOURCE / "updater" / "__init__.py").read_text(encoding="utf-8")
    for name in schema.CanaryLimits.model_fields:
        assert f"settings.limits.canary.{name}" in text
