from pathlib import Path

import pytest

from mars.config import Settings, load_settings, save_settings
from mars.core.errors import InputError


def test_file_then_overrides_then_policy(tmp_path: Path) -> None:
    file = tmp_path / "mars.toml"
    file.write_text('[scheduling]\npolicy = "fcfs"\n[tools]\nshare = 3\n[gateway]\nidle_s = 9\n')
    settings = load_settings(file, ["tools.share=4", "scheduling.window.first=7"], "mars-no-hold")
    assert settings.gateway.idle_s == 9.0
    assert settings.tools.share == 4
    assert settings.scheduling.window.first == 7
    assert settings.scheduling.policy == "mars-no-hold"


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    settings = load_settings(None, ["tools.cores=[0]", "scheduling.order.ageing_s=5"])
    save_settings(settings, tmp_path / "s.json")
    assert load_settings(tmp_path / "s.json") == settings != Settings()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["tools.shares=1"], "unknown field `shares`"),
        (["tools.share=0"], "tools.share"),
        (["tools.share=many"], "tools.share"),
        (["scheduling.window.shrink=1.5"], "window.shrink"),
        (["tools"], "write it as --set part.name=value"),
        (["tools.share=1", "tools.share.more=1"], "share is a value, not a table"),
    ],
)
def test_a_wrong_override_is_named(overrides: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        load_settings(None, overrides)


@pytest.mark.parametrize(("text", "says"), [("a = = 1", "mars.toml"), ("[tool]\n", "`tool`")])
def test_a_wrong_file_is_named(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "mars.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=says):
        load_settings(file)
    with pytest.raises(InputError, match="cannot read settings"):
        load_settings(tmp_path / "nowhere.toml")
