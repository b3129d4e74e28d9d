"""`debias-ssl <job>`: lists the jobs and runs one of them. It imports only the job that it runs."""

import importlib
import os
import sys

JOBS = {
    "train": ("debias_ssl.train", "train a classifier from few labels and many unlabeled images"),
    "trial": ("debias_ssl.trial", "train with the method that helps, or on the labels alone if none does"),
    "compare": ("debias_ssl.compare", "train variants over seeds, and tell whether they differ"),
    "distill": ("debias_ssl.distill", "train a student on the predictions of a trained run"),
    "finetune": ("debias_ssl.finetune.__main__", "change a run's classifier for an objective, such as its worst class"),
    "evaluate": ("debias_ssl.evaluate", "metrics of a trained run, or of any predictions; calibration"),
    "predict": ("debias_ssl.predict", "label images with a trained run"),
    "export": ("debias_ssl.export", "write a trained run as one file, ONNX or torch's, for other programs"),
    "push": ("debias_ssl.push", "upload a trained run to the Hugging Face hub"),
    "features": ("debias_ssl.features.__main__", "compute features of images with a pretrained network"),
    "label": ("debias_ssl.label", "label images with CLIP, and debias the labels"),
    "debias": ("debias_ssl.debias", "debias the labels of any classifier's predictions"),
    "vote": ("debias_ssl.vote", "label images by the votes of several runs"),
    "export-labels": ("debias_ssl.export_labels", "write labels for annotation tools, as image folders or data sets"),
    "import-labels": ("debias_ssl.import_labels", "merge the corrections that people made in such a tool into labels"),
    "suggest": ("debias_ssl.suggest", "list the images that are worth most to label next"),
    "report": ("debias_ssl.report", "a page of a run, of several runs, or of a comparison"),
    "configs": ("debias_ssl.configs", "list the configs that come with the package, or copy one"),
    "data": ("debias_ssl.data.__main__", "check a data setting, or write its split"),
}


def usage() -> str:
    jobs = "\n".join(f"  {name:<13} {purpose}" for name, (_, purpose) in JOBS.items())
    return (
        f"usage: debias-ssl JOB ...\n\n{jobs}\n\n"
        "debias-ssl JOB --help lists the settings of a job.\n"
        "Several processes or GPUs: accelerate launch -m debias_ssl.JOB ..."
    )


def show(text: str) -> None:
    """Prints a text to a program that may stop reading, such as `head`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Without this, Python would try to write the rest again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    job = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if job in ("-h", "--help"):
        show(usage())
    elif job == "--version":
        from debias_ssl import __version__

        show(__version__)
    elif job in JOBS:
        try:
            main_of_job = importlib.import_module(JOBS[job][0]).main
        except KeyboardInterrupt:
            # The imports take seconds, and nothing has begun.
            print("SIGINT: stopped", file=sys.stderr)
            sys.exit(130)
        main_of_job(sys.argv[2:])
    else:
        from debias_ssl.system.imports import near

        print(f"error: there is no job {job!r}{near(job, [*JOBS])}; the jobs are {', '.join(JOBS)}", file=sys.stderr)
        sys.exit(2)
