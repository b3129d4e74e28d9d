"""Chart of gains over a baseline, such as labels alone: a dot and its interval for each variant, grouped by setting."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from debias_ssl.reporting.figures.canvas import INK, WIDTH, canvas, look, truncated

# In inches.
ROW, MARGIN = 0.24, 0.9


@dataclass(frozen=True, kw_only=True)
class Gain:
    """A difference in points, with its interval if there is one."""

    setting: str
    """The setting; its gains are grouped below its name."""
    name: str
    mean: float
    low: float | None
    high: float | None


def gains(values: Sequence[Gain], alt: str, *, x_label: str, width: float = WIDTH) -> str:
    """A row for each gain, in the given order, with a line at zero.

    Args:
        values: the gains; those of a setting follow each other.
        alt: description for readers who cannot see the figure.
        x_label: the metric of the gain, and its unit.
        width: width in inches.
    """
    settings = [*dict.fromkeys(gain.setting for gain in values)]
    names = [*dict.fromkeys(gain.name for gain in values)]
    titles = [] if settings == [""] else [truncated(setting, 34) for setting in settings]
    with canvas(width, MARGIN + ROW * (len(values) + 1.4 * len(titles)), alt) as drawn:
        axes, place, ticks = drawn.axes, 0.0, []
        axes.axvline(0, color=INK, linewidth=1.2)
        for setting in settings:
            if titles:
                place += 0.4
                ticks.append((place, truncated(setting, 34)))
                place += 1
            for gain in (each for each in values if each.setting == setting):
                color, _, marker = look(names.index(gain.name))
                if gain.low is not None and gain.high is not None:
                    axes.hlines(place, 100 * gain.low, 100 * gain.high, color=color, linewidth=3, alpha=0.45)
                axes.plot(100 * gain.mean, place, color=color, marker=marker, markersize=6)
                ticks.append((place, truncated(gain.name, 24)))
                place += 1
        axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks])
        for label in axes.get_yticklabels():
            label.set_fontweight("bold" if label.get_text() in titles else "normal")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(place - 0.4, -0.8)
        axes.xaxis.set_major_locator(MaxNLocator(7))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
        axes.set_xlabel(x_label)
        axes.grid(axis="x")
    return drawn.svg
