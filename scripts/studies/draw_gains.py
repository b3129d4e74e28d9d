"""Draws the gain from unlabeled images in a comparison of several settings, for light and dark pages.

    python scripts/studies/draw_gains.py runs/compare_pretrained_features --out docs/pictures/gains

writes docs/pictures/gains-light.svg and docs/pictures/gains-dark.svg: for each setting and method the paired difference
to the run on the labels alone, with its 95 % interval. It reads compare.json and nothing else.
"""

import argparse
import json
import re
from importlib.resources import files
from pathlib import Path

from debias_ssl.reporting.sections.gains import gains_figure, read_gains
from debias_ssl.runs.results import PAIRED
from debias_ssl.system.files import write_aside

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def palettes() -> dict[str, dict[str, str]]:
    """The colors of the page's light and dark theme."""
    page = files("debias_ssl.reporting").joinpath("templates/report.html").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", page, flags=re.DOTALL)
    return {
        theme: dict(re.findall(r"--(\w+): (#\w+);", block))
        for theme, block in zip(("light", "dark"), blocks, strict=True)
    }


def alone(svg: str, colors: dict[str, str]) -> str:
    """A figure of a page as a picture of its own, with the colors of one theme."""
    svg = re.sub(r"var\(--(\w+)\)", lambda name: colors[name[1]], svg).replace("currentColor", colors["ink"])
    style = f'style="background:{colors["page"]};color:{colors["ink"]};font-family:{FONT}"'
    return svg.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" {style} ', 1)


def write_for_both_themes(svg: str, out: Path) -> None:
    """Writes OUT-light.svg and OUT-dark.svg, and prints their paths."""
    for theme, colors in palettes().items():
        path = out.with_name(f"{out.name}-{theme}.svg")
        write_aside(path, alone(svg, colors) + "\n")
        print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", type=Path, help="folder of debias-ssl compare")
    parser.add_argument("--metric", choices=PAIRED, default="accuracy")
    parser.add_argument("--out", type=Path, required=True, help="the pictures' path without its end")
    parsed = parser.parse_args()
    lines = json.loads((parsed.comparison / "compare.json").read_text(encoding="utf-8"))["table"]
    svg = gains_figure(read_gains(lines, parsed.metric), parsed.metric, is_alone=True)
    write_for_both_themes(svg, parsed.out)


if __name__ == "__main__":
    main()
