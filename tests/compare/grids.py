"""A grid that is played in a second."""

from pathlib import Path

from mars.compare.settings import Grid, load_grid

TEXT = """
name = "mini"
profiles = ["h100-nvl/qwen3-coder-30b"]
rhos = [0.5, 1]
policies = ["fcfs", "mars"]
seeds = [1, 2]
sessions = 6
[workloads.terminal]
kind = "synthetic"
class = "terminal"
"""


def mini(folder: Path, text: str = TEXT) -> Grid:
    return load_grid(grid_file(folder, text))


def grid_file(folder: Path, text: str = TEXT) -> Path:
    path = folder / "mini.toml"
    path.write_text(text)
    return path
