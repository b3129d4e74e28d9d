"""Measures how well scores detect images of unknown classes, and wrong labels among known classes.

Classes are held out of the list of classes, but their images are labeled all the same. For each score of `--unknown`
two figures, in percent: AUROC of known against held-out classes (50 is chance, more is better), and the area under the
risk-coverage curve of the known ones (less is better). Digits: 7, 8 and 9 are held out of a logistic regression, of
`--draws` random halves of the images. CLIP: the six animals of CIFAR-10 are held out, then the four vehicles; the
draws are random halves of the images, whose scores are from all of them.

    python scripts/studies/unknown_classes.py --images cifar10/test --model local-dir:models/tiny-clip \\
        --features features

Negatives are names of 40 things that are in no class (`things`), or the held-out classes themselves (`held out`): what
a user who knows them all could reach.
"""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor

from debias_ssl.contract import Place
from debias_ssl.features.embedding import embed
from debias_ssl.features.store import FolderStore
from debias_ssl.formulas.logits import floored_log
from debias_ssl.formulas.priors import stationary
from debias_ssl.formulas.selective import ScoreName, area_under_risk, score_of
from debias_ssl.labels.debiasing.config import DebiasConfig
from debias_ssl.labels.zero_shot.rows import read_request
from debias_ssl.models.clip import class_vectors, load_clip

ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")
VEHICLES = ("airplane", "automobile", "ship", "truck")
THINGS = (
    *("tree", "flower", "building", "house", "person", "face", "food", "table", "chair", "mountain", "beach", "sky"),
    *("grass", "road", "bridge", "river", "computer", "book", "bottle", "cup", "clock", "lamp", "shoe", "hat"),
    *("guitar", "fish", "insect", "snake", "mushroom", "fruit", "sign", "text", "sculpture", "toy", "furniture"),
    *("tool", "fence", "window", "wall", "texture"),
)
SCORES: tuple[ScoreName, ...] = get_args(ScoreName)
Draw = tuple[Tensor, Tensor | None, np.ndarray]
"""Logits of the classes and of the negatives, and true classes, negative where held out."""


def digits(num_draws: int) -> Iterator[Draw]:
    images, labels = load_digits(return_X_y=True)
    for seed in range(num_draws):
        order = np.random.default_rng(seed).permutation(len(labels))
        train, test = order[:900], order[900:]
        train = train[labels[train] < 7]
        classifier = LogisticRegression(C=0.01, max_iter=2000).fit(images[train], labels[train])
        logits = torch.from_numpy(classifier.decision_function(images[test])).float()
        yield logits, None, np.where(labels[test] < 7, labels[test], -1)


def halves(logits: Tensor, negatives: Tensor | None, truth: np.ndarray, num_draws: int) -> Iterator[Draw]:
    for seed in range(num_draws):
        rows = np.random.default_rng(seed).permutation(len(truth))[: len(truth) // 2]
        yield logits[rows], None if negatives is None else negatives[rows], truth[rows]


def line(title: str, draws: Iterable[Draw]) -> str:
    found = {name: [] for name in SCORES}
    for logits, negatives, truth in draws:
        debiased = logits - floored_log(stationary([logits])).float()
        known, right = truth >= 0, debiased.argmax(1).numpy() == truth
        for name in SCORES:
            score = score_of(name, logits, debiased.softmax(1), negatives).numpy()
            found[name].append((roc_auc_score(known, score), area_under_risk(score[known], right[known])))
    cells = []
    for name in SCORES:
        (auroc, area), (spread, of_area) = (100 * figure(found[name], axis=0) for figure in (np.mean, np.std))
        cells.append(f"{auroc:.1f} ± {spread:.1f}, {area:.2f} ± {of_area:.2f}")
    return f"| {title} | {' | '.join(cells)} |"


def clip_lines(images: Path, model: str, features: Path, num_draws: int) -> Iterator[str]:
    clip = load_clip(model, None, torch.device("cpu"))
    request = read_request(str(images), (*ANIMALS, *VEHICLES), "simple", DebiasConfig())
    place = Place(device=clip.device)
    cache = embed(clip, request.files, request.root, FolderStore(folder=features), place, progress=True)
    vectors, truth = torch.cat([*cache.chunks()]), request.truth[cache.places]

    def logits_of(names: tuple[str, ...]) -> Tensor:
        return vectors @ (clip.logit_scale * class_vectors(clip, names, request.templates).weights)

    for kind, held_out, known in (("animals", ANIMALS, VEHICLES), ("vehicles", VEHICLES, ANIMALS)):
        numbers = {request.classes.index(name): k for k, name in enumerate(known)}
        own = np.array([numbers.get(int(k), -1) for k in truth])
        for title, negatives in (("none", ()), ("things", THINGS), ("held out", held_out)):
            of_negatives = logits_of(negatives) if negatives else None
            draws = halves(logits_of(known), of_negatives, own, num_draws)
            yield line(f"CLIP, CIFAR-10 | {kind} | {title}", draws)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", type=Path, help="test images of CIFAR-10, in folders of classes; none: digits alone"
    )
    parser.add_argument("--model", help="as debias-ssl label takes it")
    parser.add_argument("--features", type=Path, help="folder that keeps features")
    parser.add_argument("--draws", type=int, default=10)
    parsed = parser.parse_args()
    print(f"| data | held out | negatives | {' | '.join(SCORES)} |\n|{'---|' * (3 + len(SCORES))}")
    print(line("logistic regression, digits | 7, 8, 9 | none", digits(parsed.draws)), flush=True)
    if parsed.images:
        for text in clip_lines(parsed.images, parsed.model, parsed.features, parsed.draws):
            print(text, flush=True)


if __name__ == "__main__":
    main()
