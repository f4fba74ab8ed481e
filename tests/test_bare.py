"""On a machine without what only some of the workbench needs, the rest of it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MISSING = (
    "transformer_lens", "nnsight", "jupyterlab", "IPython", "beartype", "ray", "accelerate",
    "gguf", "sklearn", "lm_eval", "wandb", "mlflow", "tensorboard", "xarray",
)  # fmt: skip

WITHOUT = """
import sys

class Without:
    '''A finder that knows all that the one inside knows, but for MISSING.'''
    def __init__(self, inside):
        self.inside = inside
    def __getattr__(self, name):
        return getattr(self.inside, name)
    def find_spec(self, name, *more):
        return None if name.partition(".")[0] in MISSING else self.inside.find_spec(name, *more)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""

# What stands in the way here is imported, or tried, nowhere in this.
EVERYDAY = """
from pathlib import Path
from tests.calls import CALLS, Asked, write_pair
from workbench.cli import main

folder, own = Path(sys.argv[1]), Asked(3)
pair = write_pair(folder)
assert pair.check().ok
for key in ("spectral.intruders", "tuco.contribution", "patching.restore", "behaviour.tokens"):
    CALLS[key](pair, own)
early = {"matplotlib", "jinja2", "scipy.stats"} & set(sys.modules)
sides, only = [pair.base.reference, "--member", f"a={pair.tuned.reference}"], "spectral.similarity"
sys.argv[1:] = ["compare", *map(str, sides), "--only", only, "--out", str(folder / "out")]
try:
    main()
finally:
    print("before a report:", *sorted(early))
    print("loaded:", *sorted(name for name in MISSING if name in sys.modules))
"""


def without(code: str, *arguments: str) -> str:
    script = f"MISSING = {MISSING!r}\n{WITHOUT}\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_analyses_and_a_comparison_with_its_report(tmp_path: Path):
    said = without(EVERYDAY, str(tmp_path)).splitlines()
    assert "matplotlib" not in said[-2]
    assert said[-1] == "loaded:"
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_the_command_line_says_what_it_can():
    assert "compare" in without("sys.argv[1:] = ['--help']\nfrom workbench.cli import main\nmain()")


def test_the_wall_holds():
    """A control: without it these packages would be found."""
    assert "No module named 'nnsight'" in without(
        "try:\n    import nnsight\nexcept ImportError as error:\n    print(error)"
    )
