"""The chart that users upgrade from, as `helm package` unpacked it of the last release; a new release puts its own here.

There is none yet: it is the chart as it was before models.reload, so a release of it has none of the keys that came since.
"""

from __future__ import annotations

from pathlib import Path


def released_chart() -> Path:
    """Returns the folder of the chart, which is not to be written to."""
    return Path(__file__).parent / "nlocalmodels"
