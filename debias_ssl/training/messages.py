"""Rewrites jsonargparse's error messages for users, and finds what an unknown setting may mean."""

import re
from collections.abc import Sequence

from debias_ssl.system.imports import near

# jsonargparse's words for programmers, and ours for users.
WORDING = (
    (
        r"Does not validate.*? Errors: - Expected a <class '(\w+)'> - Expected a <class 'NoneType'>.*Given value: (.+)",
        r"expected \1 or null, got '\2'",
    ),
    (r"Does not validate against any of the Union subtypes .*? Errors: - (.+?)\.? - Expected a <class .*", r"\1"),
    (r"Expected a dot import path string: (\S+)", r"there is no method '\1'"),
    (r"Subclasses are disabled for \w+, thus (\S+) is not.*", r"class_path \1 is not a section of settings"),
    (r"Option 'class_path' is not accepted", "class_path allows only init_args beside it"),
    (
        r"Type collections.*Got value: (?:Namespace\(class_path=|\{'class_path': )'([^']*)'(?:\W*$|, init_args=Name.*)",
        r"'\1' is not a method",
    ),
    (r"Type collections.*Got value: (Namespace\(|\{).*", "expected a method, as a name or as class_path and init_args"),
    (r"Type collections.*Got value: (\S+)", r"'\1' is not a method"),
    (r"Expected a typing\.Literal\[(.+)\]\. Got value: (.+)", r"expected one of \1, got '\2'"),
    (r"Expected a typing\.Literal\[(.+)\]", r"expected one of \1"),
    (r"Type collections.*: Expected '(\S+)' to be a function that returns .*>", r"'\1' is not a method"),
    (r"Expected a <class '(\w+)'>\. Got value: ?(.*)", r"expected \1, got '\2'"),
    (r"Expected a <class '(\w+)'>", r"expected \1"),
)

# How jsonargparse names a flag, or a setting in a file, that does not exist; before it the group that it is in.
UNKNOWN = (
    (r"^unrecognized arguments: ()-*([^\s=]+)", "--"),
    (r"^Group '([\w.]+)' does not accept option '([\w.]+)'", ""),
    (r"^()Option '([\w.]+)' is not accepted", ""),
)


def near_setting(message: str, settings: Sequence[str]) -> str:
    """The end of a message about an unknown setting: known ones near it; empty if there are none."""
    for pattern, before in UNKNOWN:
        if found := re.search(pattern, message):
            name = ".".join(filter(None, found.groups()))
            return near(before + name, [before + each for each in settings])
    return ""
