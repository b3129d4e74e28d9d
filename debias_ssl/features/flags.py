"""The flags of all jobs that compute features, and how they become arguments of `embed`."""

from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from debias_ssl.data.reading.config import Decoding
from debias_ssl.distributed.accelerator import place_of
from debias_ssl.distributed.device import Precision
from debias_ssl.distributed.processes import num_launched
from debias_ssl.system.errors import InputError

if TYPE_CHECKING:
    import accelerate

# Flags that must be equal in all processes that share the work.
AGREED = ("precision", "on_error", "bits", "max_pixels", "background")


def add_flags(parser: ArgumentParser) -> None:
    """Adds the flags for how images are read, and how they pass through the network."""
    parser.add_argument("--on_error", choices=["stop", "skip"], default="stop", help="at an image that cannot be read")
    parser.add_argument("--bits", type=int, default=None, help="of gray images with 16 bits, how many hold the picture")
    parser.add_argument("--max_pixels", type=int, default=None, help="most pixels of an image; null is Pillow's limit")
    parser.add_argument(
        "--background", type=str, default="white", help="of transparent pixels: name of a color, or '#rrggbb' in quotes"
    )
    parser.add_argument("--batch_size", type=int, default=256, help="images of a batch in each process")
    parser.add_argument("--workers", type=int, default=4, help="processes that decode, for each process")
    parser.add_argument("--wait", type=bool, default=True, help="whether to wait for what other processes make")
    parser.add_argument(
        "--precision", type=Precision, default="auto", help="auto is bf16 where the device multiplies in it"
    )


def check_flags(parsed: Namespace) -> None:
    """Raises InputError if a value is out of its range."""
    for name, least in (("batch_size", 1), ("workers", 0)):
        if parsed[name] < least:
            raise InputError(f"{name} is {parsed[name]}, must be at least {least}")
    if not parsed.wait and num_launched() > 1:
        raise InputError("--wait false is for single processes: leave it out with accelerate launch and torchrun")
    decoding_of(parsed).check("")


def decoding_of(parsed: Namespace) -> Decoding:
    """How files become pixels."""
    return Decoding(bits=parsed.bits, max_pixels=parsed.max_pixels, background=parsed.background)


def agreed_flags(parsed: Namespace) -> dict[str, str]:
    """The flags that must be equal in all processes, by name."""
    return {f"--{name}": str(parsed[name]) for name in AGREED}


def embed_settings(parsed: Namespace, accelerator: "accelerate.Accelerator") -> dict[str, Any]:
    """The keyword arguments of `embed` that the flags and the device decide."""
    return {
        "place": place_of(accelerator),
        "batch_size": parsed.batch_size,
        "workers": parsed.workers,
        "on_error": parsed.on_error,
        "decoding": decoding_of(parsed),
        "precision": accelerator.mixed_precision.replace("no", "fp32"),
        "autocast": lambda: accelerator.autocast(),
        "progress": accelerator.is_main_process,
        "wait": parsed.wait,
    }
