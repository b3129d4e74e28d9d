"""`debias-ssl vote`: labels images by the votes of several runs, with each run's class bias removed."""

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int64, UInt8
from jsonargparse import Namespace
from torch import Tensor

from debias_ssl import __version__
from debias_ssl.contract import Place
from debias_ssl.data.reading.cache import without_unreadable
from debias_ssl.data.reading.config import Decoding
from debias_ssl.data.reading.decode import center_crop, decode
from debias_ssl.data.reading.features import feature_notes
from debias_ssl.data.reading.workers import dead_workers_told
from debias_ssl.data.sources.below import names_below
from debias_ssl.data.sources.images import UNKNOWN, Images, fingerprint, left_out_notes
from debias_ssl.distributed.accelerator import make_accelerator, place_of
from debias_ssl.distributed.agreement import check_agreement
from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.distributed.processes import is_first
from debias_ssl.distributed.start_up import first_of_each_host_first
from debias_ssl.labels.debiasing.config import DebiasConfig
from debias_ssl.labels.debiasing.rows import Labeling, Rows
from debias_ssl.labels.debiasing.sample import read_rows
from debias_ssl.labels.matrix.known_rows import LogitFile
from debias_ssl.labels.output.folder import OutputConfig, check_folder, write_removed
from debias_ssl.labels.tables.truth import read_labels, read_target, say
from debias_ssl.labels.voting.member_figures import criteria_of, lines_of, members_summary, members_table
from debias_ssl.labels.voting.members import Matrix, Member, Run, read_members
from debias_ssl.labels.voting.votes import ballots_of, sampled_rows, voted
from debias_ssl.labels.zero_shot.images import images_to_label
from debias_ssl.runs.folder import RunFolder
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import ends_told
from debias_ssl.system.locking import locked
from debias_ssl.system.outputs import check_apart
from debias_ssl.training.job_help import JobHelp
from debias_ssl.training.parser import job_parser

if TYPE_CHECKING:
    import accelerate

# Settings that votes cannot use: they need class vectors, or logits of other images from each run.
WITHOUT = ("refine", "reference")
# Side in pixels of the pictures on the report's page.
PICTURE = 96

HELP = JobHelp(
    arguments="--runs RUN... --out FOLDER [--SETTING VALUE]...",
    does=(
        "Labels images by the votes of several runs. Each member's preference for classes is removed first.\n"
        "Writes labels.csv, shares of votes and report.html."
    ),
    example="debias-ssl vote --runs runs/a runs/b runs/c --images photos --out votes",
    guide="votes.md",
)


@entry_point
def main(arguments: list[str]) -> None:
    parser = job_parser("vote", HELP)
    parser.add_argument(
        "--runs", type=str, nargs="+", required=True, help="run folders, folders of labels, or files of predict"
    )
    parser.add_argument("--images", type=str, default=None, help="folder of any depth, list, CSV of path, or tar files")
    parser.add_argument("--root", type=str, default=None, help="what paths of a list are relative to; else its folder")
    parser.add_argument(
        "--features", type=str, nargs="+", default=[], help="folders of features, for runs on features; else their own"
    )
    parser.add_class_arguments(DebiasConfig, as_group=False, skip={*WITHOUT})
    parser.add_argument("--on_error", choices=["stop", "skip"], default="stop", help="at an image that cannot be read")
    parser.add_argument("--batch_size", type=int, default=500, help="images of a batch in each process")
    parser.add_argument("--workers", type=int, default=4, help="processes that decode, for each process")
    parser.add_class_arguments(OutputConfig, as_group=False)
    parser.add_argument("--out", type=str, required=True, help="folder of labels, report.html and more")
    parser.add_argument("--overwrite", action="store_true", help="replace the labels in --out")
    parsed = parser.parse_args(arguments)
    names = [setting.name for setting in fields(DebiasConfig) if setting.name not in WITHOUT]
    config = DebiasConfig(**{name: parsed[name] for name in names})
    _check(parsed, config)
    out = Path(parsed.out)
    inputs = {f"--{name}": parsed[name] for name in ("runs", "images", "features", "truth", "tune_on", "target_prior")}
    check_apart(out, "--out", inputs)
    again = "run the same command again"
    with locked(out) if is_first() else nullcontext(), dead_workers_told("--workers", again), ends_told(again):
        check_folder(out, parsed.overwrite)
        _vote(parsed, config, out)


def _check(parsed: Namespace, config: DebiasConfig) -> None:
    for name, least in (("batch_size", 1), ("workers", 0)):
        if parsed[name] < least:
            raise InputError(f"{name} is {parsed[name]}, must be at least {least}")
    config.check_kind("probs")
    if config.prior == "content_free":
        raise InputError(
            "--prior content_free needs logits of a blank image, which votes do not have: choose another prior"
        )


@dataclass(frozen=True, kw_only=True)
class _Electorate:
    """The classifiers that vote, and the rows that they vote on."""

    members: Sequence[Member]
    images: Images | None
    """None where all members are matrices."""
    root: Path
    """The folder that the names of images are relative to."""
    bad: dict[str, str]
    """Images that were left out, and why."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.members[0].classes

    @property
    def names(self) -> Sequence[str]:
        """Of the rows."""
        if self.images is not None:
            return names_below(self.images.names, self.root)
        first = self.members[0]
        assert isinstance(first, Matrix)
        return first.predictions.names


def _vote(parsed: Namespace, config: DebiasConfig, out: Path) -> None:
    accelerator = make_accelerator("fp32")
    place, is_main = place_of(accelerator), accelerator.is_main_process
    given = _electorate(parsed, accelerator)
    check_agreement(lambda: _agreed(given))
    rows = _rows(given, config, is_main)
    sample, electors, criteria = sampled_rows(len(rows.names)), [], []
    for member in given.members:
        logits, vectors = _seen(member, given, sample, place, parsed)
        if is_main:
            electors.append(replace(rows, chunks=logits))
            criteria.append(criteria_of(read_rows(electors[-1], [sample], "sample", False)[0], vectors))
    if is_main:
        _write(given, electors, criteria, config, parsed, out)


def _electorate(parsed: Namespace, accelerator: "accelerate.Accelerator") -> _Electorate:
    """Members and images, without those that cannot be read if they are to be left out."""
    members = read_members(parsed.runs, parsed.features, accelerator.device)
    runs = [member for member in members if isinstance(member, Run)]
    if parsed.images is None:
        if runs:
            raise InputError(f"--runs {runs[0].name!r} is a run, which needs images: pass --images")
        return _Electorate(members=members, images=None, root=Path(), bad={})
    with first_of_each_host_first(accelerator):
        images, root = images_to_label(parsed.images, members[0].classes, parsed.root, of="those that vote")
        bad: dict[str, str] = {}
        if parsed.on_error == "skip":
            for run in runs:
                if not run.features:
                    reading = run.trained.reading(parsed.workers)
                    images, more = without_unreadable(images, reading, accelerator.is_local_main_process)
                    bad |= more
    if accelerator.is_main_process:
        folders = list(dict.fromkeys(folder for run in runs for folder in run.features))
        say(
            f"note: {note}"
            for note in (*left_out_notes(images), *images.notes, *(feature_notes(folders) if folders else ()))
        )
    return _Electorate(members=members, images=images, root=root, bad=bad)


def _rows(given: _Electorate, config: DebiasConfig, is_main: bool) -> Rows:
    """What is known about the rows, besides logits."""
    names, classes = given.names, given.classes
    known = [read_labels(Path(file), names, classes) if file else None for file in (config.truth, config.tune_on)]
    if is_main:
        say(line for each in known if each for line in each.said)
    truth, tuning = (each and each.labels for each in known)
    if truth is None and given.images is not None:
        truth = given.images.labels
    return Rows(
        chunks=(),
        names=names,
        classes=classes,
        target=read_target(config.target_prior, classes),
        truth=truth,
        tuning=tuning,
    )


def _seen(
    member: Member, given: _Electorate, sample: Int64[np.ndarray, " S"], place: Place, parsed: Namespace
) -> tuple[LogitFile, Float[Tensor, "S D"] | None]:
    """Logits of all rows, and the features of some rows, if there are any."""
    if isinstance(member, Matrix):
        return member.logits(given.names, given.classes), None
    assert given.images is not None
    reader = member.reader(given.images, place, parsed.workers)
    logits = member.logits(reader, given.classes, place, parsed.batch_size)
    return logits, member.vectors(reader, sample, place, parsed.batch_size)


def _write(
    given: _Electorate,
    electors: Sequence[Rows],
    criteria: Sequence[dict[str, float | None]],
    config: DebiasConfig,
    parsed: Namespace,
    out: Path,
) -> None:
    member_names = [member.name for member in given.members]
    ballots = ballots_of(electors, config)
    rows, removal = voted(electors[0], ballots, member_names, config.strength)
    truth = np.full(len(rows.names), UNKNOWN) if rows.truth is None else rows.truth.copy()
    if rows.tuning is not None:
        truth[rows.tuning >= 0] = UNKNOWN
    winners = np.concatenate([chunk.argmax(-1).numpy() for chunk in rows.chunks])
    entries = members_summary(member_names, ballots, criteria, winners, truth, len(rows.classes))
    table = members_table(entries)

    def page(labeling: Labeling) -> str:
        return _page(labeling, table, given, parsed)

    further: dict[str, Any] = {"members": entries, "root": parsed.root, "num_unreadable": len(given.bad)}
    if parsed.images is not None:
        further["images"] = os.path.abspath(parsed.images) if os.path.exists(parsed.images) else parsed.images
    unreadable = {os.path.relpath(path, given.root): why for path, why in given.bad.items()}
    # Shares of votes have a temperature of 1, for all temperatures of the voters.
    config = replace(config, temperature=1.0)
    files = OutputConfig(probs=parsed.probs, table=parsed.table)
    said = write_removed(rows, config, removal, out, page, further, unreadable, files)
    if unreadable:
        listed = out / "unreadable.json"
        print(f"note: left out {len(unreadable)} files that cannot be read: {listed}", file=sys.stderr)
    print(lines_of(table))
    print(said)


def _agreed(given: _Electorate) -> dict[str, str]:
    """The facts that must be equal in all processes."""
    runs = [member for member in given.members if isinstance(member, Run)]
    facts = {f"the hash of {run.name}": RunFolder(Path(run.name)).hash_of_model() for run in runs}
    return facts if given.images is None else facts | {"the hash of --images": fingerprint(given.images)}


def _page(labeling: Labeling, table: list[list[str]], given: _Electorate, parsed: Namespace) -> str:
    # The drawing code is slow to import, and not needed to find errors in the input.
    from debias_ssl.reporting.labels_page import labels_page
    from debias_ssl.reporting.page import render
    from debias_ssl.reporting.sections.members import members_section

    images = given.images

    def pictures(rows: Sequence[int]) -> list[UInt8[np.ndarray, "H W K"] | None]:
        assert images is not None
        return [_picture(images.names[row]) for row in rows]

    facts = [f"{len(labeling.names):,} rows" + (f" of {parsed.images}" if parsed.images else "")]
    facts.append(f"votes of {len(given.members)} members; confidences are the shares of members that agree")
    page = labels_page(labeling, facts=facts, features=None, pictures=None if images is None else pictures)
    return render(replace(page, sections=[members_section(table), *page.sections]), __version__)


def _picture(path: str) -> UInt8[np.ndarray, "H W K"] | None:
    try:
        image = decode(path, decoding=Decoding())
    except InputError:
        return None
    return center_crop(image, min(PICTURE, *image.size))


if __name__ == "__main__":
    main()
