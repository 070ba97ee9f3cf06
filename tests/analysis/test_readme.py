"""The example of the analysis's page runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[2] / "distsens" / "analysis" / "README.md"


def test_the_example_on_a_torchvision_model_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    assert names["both"]["model"].tolist() == ["one"] * 2 + ["other"] * 2
    assert set(names["curves"]["selection"]) == {"top", "bottom", "random"}
    assert "over_noise" in capsys.readouterr().out
