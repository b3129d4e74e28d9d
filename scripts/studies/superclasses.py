"""The setting `superclasses` of SCAD: from a table of classes and superclasses, or from CLIP's vectors of the names.

    python scripts/studies/superclasses.py --classes classes.txt --table superclasses.csv
    python scripts/studies/superclasses.py --classes classes.txt --model ViT-B-32 --pretrained openai --num 3

The first reads a table with the columns `class` and `superclass`, a row for each class. The second makes `--num`
groups by k-means of the names' vectors, and calls each by its first class. Both print a list in the order of
`--classes`, which must be that of the data (`debias-ssl data check` shows it):

    debias-ssl train ... --method SCAD --method.superclasses "$(python scripts/studies/superclasses.py ...)"
"""

import argparse
import json
from pathlib import Path

import torch
from jaxtyping import Float
from sklearn.cluster import KMeans
from torch import Tensor

from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.labels.names.class_names import class_list
from debias_ssl.models.clip import class_vectors, load_clip
from debias_ssl.system.errors import InputError
from debias_ssl.system.tables import read_table

TEMPLATE = "a photo of a {}."


def of_table(path: Path, classes: tuple[str, ...]) -> list[str]:
    """The superclass of each class.

    Raises:
        InputError: the table has no such columns, or not one row for each class.
    """
    table = read_table(path)
    of_class, of_superclass = table.column(["class"]), table.column(["superclass"])
    if of_class is None or of_superclass is None:
        raise InputError(f"{path}: the columns class and superclass are expected, there are {', '.join(table.header)}")
    found: dict[str, str] = {}
    for line, cells in table:
        name, superclass = cells[of_class].strip(), cells[of_superclass].strip()
        if name not in classes or name in found or not superclass:
            wrong = "is no class" if name not in classes else "has two rows" if name in found else "has no superclass"
            raise InputError(f"{path}, line {line}: {name!r} {wrong}")
        found[name] = superclass
    missing = [name for name in classes if name not in found]
    if missing:
        raise InputError(f"{path}: no row for {', '.join(map(repr, missing[:3]))}{' ...' if missing[3:] else ''}")
    return [found[name] for name in classes]


def of_vectors(vectors: Float[Tensor, "C D"], classes: tuple[str, ...], num: int) -> list[str]:
    """Groups by k-means, each called by its first class."""
    if not 1 <= num <= len(classes):
        raise InputError(f"--num is {num}, must be in [1, {len(classes)}]")
    groups = KMeans(num, random_state=0).fit_predict(vectors.numpy()).tolist()
    return [classes[groups.index(group)] for group in groups]


@entry_point
def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", required=True, help="file of class names, as debias-ssl label takes it")
    parser.add_argument("--table", type=Path, help="file with the columns class and superclass")
    parser.add_argument("--model", help="of CLIP, as debias-ssl label takes it")
    parser.add_argument("--pretrained")
    parser.add_argument("--num", type=int, default=3, help="superclasses to make by CLIP")
    parsed = parser.parse_args(arguments)
    if (parsed.table is None) == (parsed.model is None):
        raise InputError("one of --table and --model is needed")
    classes = class_list(parsed.classes).names
    if parsed.table is not None:
        superclasses = of_table(parsed.table, classes)
    else:
        clip = load_clip(parsed.model, parsed.pretrained, torch.device("cpu"))
        superclasses = of_vectors(class_vectors(clip, classes, [TEMPLATE]).weights.T.cpu(), classes, parsed.num)
    print(json.dumps(superclasses))


if __name__ == "__main__":
    main()
