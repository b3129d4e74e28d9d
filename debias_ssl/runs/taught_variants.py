"""Variants of a comparison whose teacher is another variant of it: `teacher: variant:NAME`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from debias_ssl.runs.pairing import inside, own_name, setting_of
from debias_ssl.system.errors import InputError

PREFIX = "variant:"


def teacher_of(variant: str, resolved: Mapping[str, Any]) -> str | None:
    """The variant of the same setting whose run of the same seed is the teacher; None for any other teacher."""
    given = resolved.get("teacher") or ""
    return inside(setting_of(variant), given.removeprefix(PREFIX).strip()) if given.startswith(PREFIX) else None


def teachers_first(variants: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The names of the variants in the order in which they can be trained.

    Raises:
        InputError: a teacher is no variant, or variants teach each other in a circle.
    """
    order: list[str] = []

    def add(name: str, students: tuple[str, ...]) -> None:
        if name in students:
            circle = " <- ".join(own_name(each) for each in (*students[students.index(name) :], name))
            raise InputError(f"variants are teachers of each other in a circle: {circle}")
        if name in order:
            return
        teacher = teacher_of(name, variants[name])
        if teacher is not None and teacher not in variants:
            known = [own_name(each) for each in variants if setting_of(each) == setting_of(name) and each != name]
            raise InputError(
                f"variant {name!r}: teacher is {variants[name]['teacher']!r}, but there is no such variant; "
                f"the others are {', '.join(known)}"
            )
        if teacher is not None:
            add(teacher, (*students, name))
        order.append(name)

    for name in variants:
        add(name, ())
    return order


def with_teacher(variant: str, resolved: dict[str, Any], seed: int, out: Path) -> dict[str, Any]:
    """The settings of a run, in which a teacher that is a variant has become the folder of its run."""
    teacher = teacher_of(variant, resolved)
    return {**resolved, **({"teacher": str(run_path(out, teacher, seed))} if teacher else {}), "seed": seed}


def run_path(out: Path, variant: str, seed: int) -> Path:
    """The run folder of a variant in the folder of its comparison."""
    return out / variant / f"seed-{seed}"
