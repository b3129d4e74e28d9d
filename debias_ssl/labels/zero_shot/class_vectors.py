"""The class vectors that images are compared with: from prompts, or from the user."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float

from debias_ssl.labels.names.class_list import ClassList, Prompt
from debias_ssl.labels.zero_shot.prompts import Templates
from debias_ssl.models.clip import ClassVectors, Clip, class_vectors
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.files import read_array

# Characters of a name in messages.
SHOWN = 100


def vectors_of_prompts(
    clip: Clip, prompts: Sequence[Sequence[Prompt]], templates: Templates, *, progress: bool = False
) -> ClassVectors:
    """A vector for each class: the normalized mean of its prompts' vectors, in which each prompt counts as much.

    The vector of a name is the normalized mean over templates of its sentences' normalized vectors (2103.00020), that
    of a sentence its own normalized one. Prompts of a class that are the same to the tokenizer count once.

    Args:
        clip: the model.
        prompts: of each class, one at least.
        templates: sentences with one `{}` each, or functions of the name.
        progress: whether to show a progress bar.
    """
    flat = [prompt for of_class in prompts for prompt in of_class]
    vectors = torch.empty(clip.embed_dim, len(flat), device=clip.device)
    first, cut, num_prompts, not_kept = list(range(len(flat))), [], 0, None
    for is_sentence, forms in ((False, templates), (True, ("{}",))):
        places = [i for i, prompt in enumerate(flat) if prompt.is_sentence == is_sentence]
        if not places:
            continue
        made = class_vectors(clip, [flat[i].text for i in places], forms, progress=progress)
        not_kept = not_kept or made.not_kept
        vectors[:, places] = made.weights
        for earlier, later in made.same:
            first[places[later]] = places[earlier]
        cut.extend(made.cut)
        num_prompts += made.num_prompts
    stops = np.cumsum([len(of_class) for of_class in prompts]).tolist()
    own = [[*dict.fromkeys(first[stop - len(each) : stop])] for stop, each in zip(stops, prompts, strict=True)]
    weights = vectors[:, [places[0] for places in own]]
    for k, places in enumerate(own):
        if len(places) > 1:
            weights[:, k] = F.normalize(vectors[:, places].mean(1), dim=0)
    same = _repeated([frozenset(places) for places in own])
    return ClassVectors(weights=weights, same=same, cut=cut, num_prompts=num_prompts, not_kept=not_kept)


def _repeated(keys: Sequence[Any]) -> list[tuple[int, int]]:
    """Places of a first key and of each that is the same."""
    first: dict[Any, int] = {}
    places = [(first.setdefault(key, k), k) for k, key in enumerate(keys)]
    return [(earlier, k) for earlier, k in places if earlier != k]


def check_different(clip: Clip, vectors: ClassVectors, classes: ClassList) -> None:
    """Raises InputError where two classes have the same prompts, so that the second one could not be predicted."""
    if not vectors.same or classes.repeats:
        return
    first, second = vectors.same[0]
    one, other = (shorten(repr(classes.names[k]), SHOWN, placeholder=" ...'") for k in (first, second))
    names = [sorted(" ".join(prompt.text.split()) for prompt in classes.prompts[k]) for k in (first, second)]
    if names[0] == names[1]:
        why = "their names in prompts are the same"
    elif vectors.cut and [name.lower() for name in names[0]] != [name.lower() for name in names[1]]:
        why = f"the model reads {tokens_read(clip)} tokens, and the prompts differ only after that"
    else:
        why = "the model's tokenizer maps their names to the same tokens; it may ignore upper and lower case"
    raise InputError(
        f"the classes {one} and {other} have the same prompts, so the second would never be predicted: {why}; "
        "give one of them another name for prompts, after a tab in --classes"
    )


def tokens_read(clip: Clip) -> int:
    return clip.tokenizer(["a"]).shape[1]


def read_class_vectors(given: str | np.ndarray, num_classes: int) -> Float[np.ndarray, "C D"]:
    """A vector for each class, in fp64.

    Args:
        given: a .npy file, or an array.
        num_classes: how many rows it needs.

    Raises:
        InputError: it cannot be read, or has not a row of finite numbers, not all 0, for each class.
    """
    values, source = given, "--class_vectors"
    if isinstance(values, str):
        source += f" {given}"
        try:
            values = read_array(Path(values))
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {source}: {reason(error)}; numpy.save writes such a file") from error
    if values.ndim != 2 or values.dtype.kind != "f":
        raise InputError(
            f"{source} holds {values.dtype} of shape {values.shape}; floating-point numbers are needed, one row for "
            "each class"
        )
    if len(values) != num_classes:
        turned = ": pass its transpose" if values.shape[1] == num_classes else ""
        raise InputError(
            f"{source} has {len(values)} rows of {values.shape[1]} numbers; {num_classes} rows are needed, one "
            f"for each class in the order of --classes{turned}"
        )
    values = values.astype(np.float64)
    wrong = np.flatnonzero(~np.isfinite(values).all(1) | (values == 0).all(1))
    if len(wrong):
        what = "is 0 everywhere" if (values[wrong[0]] == 0).all() else "has a number that is not finite"
        raise InputError(f"{source}: row {wrong[0]} (from 0) {what}; a vector needs a direction: compute it again")
    return values


def own_vectors(clip: Clip, values: Float[np.ndarray, "C D"], classes: ClassList) -> ClassVectors:
    """Vectors of the user's own making, normalized, for a model.

    Args:
        clip: the model.
        values: as `read_class_vectors` gives them.
        classes: their classes.

    Raises:
        InputError: they are not of this model, or two are the same, so that the second class could not be predicted.
    """
    if values.shape[1] != clip.embed_dim:
        raise InputError(
            f"--class_vectors have {values.shape[1]} numbers each, and vectors of --model {clip.embed_dim}: make them "
            "by its encode_text, or name the model that they are of"
        )
    weights = F.normalize(torch.from_numpy(values), dim=1).float()
    # Equal except for the rounding of their normalization; 0 has no sign.
    same = _repeated([row.tobytes() for row in np.round(weights.numpy(), 5) + 0.0])
    if same:
        one, other = (repr(classes.names[k]) for k in same[0])
        raise InputError(
            f"--class_vectors: rows {same[0][0]} and {same[0][1]} (from 0) are the same, so {other} would never "
            f"be predicted beside {one}: remove one of the classes, or compute its vector again"
        )
    return ClassVectors(weights=weights.T.contiguous().to(clip.device), same=(), cut=(), num_prompts=0)
