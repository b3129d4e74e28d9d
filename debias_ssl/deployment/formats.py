"""Export formats: a network as an ONNX model or a torch.export program, checked before it is written."""

import importlib.util
import io
import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from debias_ssl.deployment.adjustment import Adjustment
from debias_ssl.deployment.network import Deployed, expected
from debias_ssl.runs.trained import TrainedRun
from debias_ssl.system.errors import InputError, StoppedError, reason

Format = Literal["onnx", "torch"]
Answer = Callable[[Tensor], tuple[np.ndarray, np.ndarray]]
# Packages that the format onnx needs in addition to torch, and how to install them.
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
EXTRA = "pip install 'debias-ssl[onnx]'"
# ONNX Runtime 1.14 and later read it.
OPSET = 18
# A protocol buffer must be smaller than 2 GiB; the difference is for data other than weights.
MOST_BYTES = 2**31 - 2**24
# Batch sizes with which a file is checked, and the largest allowed difference of its numbers from the run's.
BATCHES, TOLERANCE = (1, 7), 1e-4
OUTPUTS = ["logits", "probabilities"]
# The name of the facts in a program of torch.export.
FACTS = "debias_ssl.json"


def check_packages(kind: Format) -> None:
    """Raises InputError if packages of a format are missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None] if kind == "onnx" else []
    if missing:
        raise InputError(f"--format onnx needs the package {missing[0]}: {EXTRA}, or take --format torch")


def content_of(run: TrainedRun, adjustment: Adjustment, facts: Mapping[str, str], kind: Format) -> tuple[bytes, float]:
    """The content of a file with the network of a run, and how far its numbers are from the run's.

    Raises:
        InputError: the network cannot be exported, or is too large for the format.
        StoppedError: the file would give other numbers than the run.
    """
    network = Deployed(run, adjustment)
    if kind == "onnx" and sum(each.nbytes for each in network.state_dict().values()) > MOST_BYTES:
        raise InputError("the network is larger than 2 GiB, the limit of an ONNX file: use --format torch")
    try:
        # The warnings of the exporters are for their developers.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = {"onnx": _onnx, "torch": _torch}[kind](network, facts)
            answer = {"onnx": _by_onnx, "torch": _by_torch}[kind](content)
            difference = max(_difference(answer, run, adjustment, network.example(number)) for number in BATCHES)
    except StoppedError:
        raise
    except Exception as error:  # a network may hold anything, and exporters raise anything
        why = f"{type(error).__name__}: {reason(error)}"
        raise InputError(f"the network {run.config.model.name} cannot be exported as {kind} ({why})") from error
    return content, difference


def _difference(answer: Answer, run: TrainedRun, adjustment: Adjustment, images: Tensor) -> float:
    """The largest difference of logits and probabilities to those of the run.

    Raises:
        StoppedError: it is larger than rounding errors.
    """
    logits = expected(run, adjustment, images)
    pairs = zip(answer(images), (logits, logits.softmax(-1)), strict=True)
    differences = []
    for found, wanted in pairs:
        scale = max(1.0, wanted.abs().max().item())
        differences.append((torch.from_numpy(found) - wanted).abs().max().item() / scale)
    if not max(differences) <= TOLERANCE:
        raise StoppedError(
            f"the exported network differs from the run by {max(differences):.2g} in a batch of {len(images)}, more "
            f"than {TOLERANCE:g}: nothing was written; please report it, with the network's name"
        )
    return max(differences)


def _program(network: Deployed) -> torch.export.ExportedProgram:
    program = torch.export.export(network, (network.example(2),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:
        # It contains names of files of this machine.
        node.meta.pop("stack_trace", None)
    return program


def _torch(network: Deployed, facts: Mapping[str, str]) -> bytes:
    file = io.BytesIO()
    torch.export.save(_program(network), file, extra_files={FACTS: json.dumps(facts, ensure_ascii=False)})
    return file.getvalue()


def _by_torch(content: bytes) -> Answer:
    module = torch.export.load(io.BytesIO(content)).module()

    def answer(images: Tensor) -> tuple[Float[np.ndarray, "N C"], Float[np.ndarray, "N C"]]:
        logits, probabilities = module(images)
        return logits.numpy(), probabilities.numpy()

    return answer


def _onnx(network: Deployed, facts: Mapping[str, str]) -> bytes:
    import onnx

    program: Any = torch.onnx.export(
        _program(network),
        input_names=["features" if network.takes_features else "images"],
        output_names=OUTPUTS,
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    model = program.model_proto
    _without_traces(model)
    model.producer_name, model.producer_version = "debias_ssl", facts["debias_ssl"]
    onnx.helper.set_model_props(model, dict(facts))
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _without_traces(model: Any) -> None:
    """Removes torch's notes about source code, which name files of this machine, and names the free dimension."""
    graph = model.graph
    for each in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del each.metadata_props[:]
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = "batch"


def _by_onnx(content: bytes) -> Answer:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def answer(images: Tensor) -> tuple[Any, Any]:
        logits, probabilities = session.run(OUTPUTS, {name: images.numpy()})
        return logits, probabilities

    return answer
