"""`debias-ssl label` in two processes, and with a model that has learned something."""

import itertools
import json
import os
import shutil
import socket
import tarfile
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from jobs import rows_of
from launched import start_ranks
from PIL import Image
from safetensors.torch import save_file
from small_clip import PREPROCESSING, paint_images, save_clip

from debias_ssl import label
from debias_ssl.data.sources import shards
from debias_ssl.features import embedding as features
from debias_ssl.label import main
from debias_ssl.labels.names.class_names import class_list
from debias_ssl.labels.zero_shot.prompts import read_templates
from debias_ssl.models.clip import load_clip


def test_imagenets_names_differ_and_its_prompts_are_open_clips():
    listed = class_list("imagenet")
    classes, prompts = listed.names, [prompt.text for (prompt,) in listed.prompts]
    assert len(set(classes)) == len(prompts) == 1000
    assert (classes[0], prompts[0]) == ("tench", "tench")
    assert [(classes[k], prompts[k]) for k in (657, 744)] == [
        ("missile (657)", "missile"),
        ("missile (744)", "missile"),
    ]


def test_templates_have_names():
    assert [len(read_templates(name)) for name in ("simple", "openai")] == [7, 80]


def work(rank: int, port: int, folder: Path, *commands: list[str]) -> None:
    """What torchrun starts: some commands, and what each process has read of tar files."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    features.SHARD_SIZE = 4
    label._page = lambda *_: ""
    opened: set[str] = set()
    read = shards.read_member
    shards.read_member = lambda member: opened.add(Path(member.shard.path).name) or read(member)
    for command in commands:
        main(command)
        (folder / f"opened_{rank}.json").write_text(json.dumps(sorted(opened)))


@pytest.mark.usefixtures("no_page")
def test_two_processes_do_what_one_does(tmp_path, images, arguments):
    main(arguments(features=tmp_path / "one", out=tmp_path / "alone"))
    broken = tmp_path / "images_broken"
    (paint_images(broken)[5]).write_bytes(b"no image")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    good = arguments(features=tmp_path / "two", out=tmp_path / "together")
    for number, part in enumerate((images[:6], images[6:8], images[8:])):
        with tarfile.open(tmp_path / f"x-{number}.tar", "w") as tar:
            for path in part:
                tar.add(path, path.relative_to(tmp_path / "images").as_posix())
    packed = arguments(features=tmp_path / "four", out=tmp_path / "packed", images=tmp_path / "x-{0..2}.tar")
    bad = arguments(features=tmp_path / "three", out=tmp_path / "broken", images=broken)
    # The same images elsewhere, with other times and names, and one more at the front: their features are kept.
    shutil.copytree(tmp_path / "images", tmp_path / "more", copy_function=shutil.copyfile)
    (tmp_path / "more" / "ant").rename(tmp_path / "more" / "emmet")
    Image.new("RGB", (20, 16), "red").save(tmp_path / "more" / "0.png")
    shutil.copytree(tmp_path / "one", tmp_path / "older")
    main(arguments(features=tmp_path / "older", out=tmp_path / "one_more", images=tmp_path / "more"))
    joined = arguments(features=tmp_path / "two", out=tmp_path / "two_more", images=tmp_path / "more")
    context = start_ranks(work, port, tmp_path, good, joined, packed, bad)
    processes = [process for process in context.processes if process is not None]
    for process in processes:
        process.join()
    for number, kind in itertools.product(range(3), ("content", "shard")):
        name, later = (f"{kind}_{number:05d}.{rest}" for rest in ("npy", "1.npy"))
        assert (tmp_path / "older" / later).read_bytes() == (tmp_path / "two" / later).read_bytes()
        assert not (tmp_path / "two" / name).exists()
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "four" / name).read_bytes()
    assert (tmp_path / "alone" / "probs.npy").read_bytes() == (tmp_path / "packed" / "probs.npy").read_bytes()
    # Features are made in groups of four images: the first of three is one process's, the others are the other's.
    opened = [json.loads((tmp_path / f"opened_{rank}.json").read_text()) for rank in range(2)]
    assert opened == [["x-0.tar"], ["x-0.tar", "x-1.tar", "x-2.tar"]]
    for name in ("labels.csv", "probs.npy"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "together" / name).read_bytes()
    assert [process.exitcode for process in processes] == [2, 2]
    made = sorted(path.name for path in (tmp_path / "three").glob("shard_*.npy"))
    assert made == ["shard_00000.npy", "shard_00002.npy"]


COLORS = {"cherry": (200, 40, 40), "grass": (40, 180, 60), "sky": (60, 110, 220)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> str:
    """A model that has learned the names of three colors, and prefers the first of them."""
    folder = tmp_path_factory.mktemp("trained")
    clip = load_clip(save_clip(folder), None, torch.device("cpu"))
    network = clip.network.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    tokens, random = open_clip.tokenize([f"a photo of a {name}." for name in COLORS], 16), torch.Generator()
    colors = torch.tensor([*COLORS.values()]).view(3, 3, 1, 1) / 255
    mean, std = (torch.tensor(PREPROCESSING[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(60):
            labels = torch.randint(3, (24,), generator=random.manual_seed(len(COLORS) + _))
            images = (colors[labels] + 0.15 * torch.randn(24, 3, 16, 16)).clamp(0, 1)
            seen = network.encode_image((images - mean) / std, normalize=True)
            said = network.encode_text(tokens, normalize=True)
            loss = torch.nn.functional.cross_entropy(10 * seen @ said.T, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.logit_scale.data.fill_(10.0).log_()
    save_file(
        {name: each.contiguous() for name, each in network.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return f"local-dir:{folder}"


def test_a_trained_model_labels_most_images_rightly(tmp_path, trained, arguments, capsys):
    """From images to a page, with truth from a file; the second time no image is read."""
    random, lines = np.random.default_rng(0), ["path,label"]
    (tmp_path / "colors").mkdir()
    for i in range(45):
        name = [*COLORS][i % 3]
        pixels = np.array(COLORS[name]) + random.normal(scale=40, size=(16, 20, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / "colors" / f"{i}.png")
        lines.append(f"{i}.png,{name}")
    (tmp_path / "truth.csv").write_text("\n".join(lines))
    (tmp_path / "colors.txt").write_text("\n".join(COLORS))
    given = {"images": tmp_path / "colors", "classes": tmp_path / "colors.txt", "model": trained}
    given |= {"truth": tmp_path / "truth.csv", "templates": "openai"}
    main(arguments(**given))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    right = [row["label"] == [*COLORS][int(row["path"].split(".")[0]) % 3] for row in rows_of(tmp_path / "out")]
    assert summary["debiased"]["accuracy"] == pytest.approx(np.mean(right)) and np.mean(right) > 0.9
    assert "Against the truth" in (tmp_path / "out" / "report.html").read_text()
    before = (tmp_path / "out" / "labels.csv").read_bytes()
    for path in (tmp_path / "colors").iterdir():
        stat = path.stat()
        path.write_bytes(bytes(stat.st_size))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    main([*arguments(**given), "--overwrite"])
    assert (tmp_path / "out" / "labels.csv").read_bytes() == before
