"""The upload of a run folder to the Hugging Face hub."""

from pathlib import Path

from debias_ssl.models.timm_folder import FILE as TIMM_CONFIG
from debias_ssl.runs.folder import CARD
from debias_ssl.system.errors import InputError, StoppedError, reason

# The files for timm and `debias_ssl.load_run`, and the card; no names of images, predictions or checkpoints.
UPLOADED = (CARD, TIMM_CONFIG, "model.safetensors", "method.safetensors", "model.json", "config.yaml", "finetune.yaml")
UPLOADED += ("summary.json",)
# HTTP codes for an unknown token, or a token without permission to write there.
DENIED = (401, 403)


def files_to_upload(folder: Path) -> list[str]:
    """The files of a run folder to upload.

    Raises:
        InputError: it has no model card.
    """
    if not (folder / CARD).exists():
        raise InputError(
            f"{str(folder)!r} has no {CARD}because an earlier version trained it: write a model card there, or "
            "train again"
        )
    return [name for name in UPLOADED if (folder / name).exists()]


def check_upload(repo: str) -> None:
    """Checks before anything is uploaded.

    Raises:
        InputError: `repo` is not a repository name, or there is no token.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"--repo {repo!r} is not a repository name: {reason(error)}") from error
    if repo.count("/") != 1:
        raise InputError(f"--repo is {repo!r}, must be owner/name")
    if get_token() is None:
        raise InputError("there is no token of the Hugging Face hub: run hf auth login, or set HF_TOKEN")


def upload(folder: Path, files: list[str], repo: str, *, is_public: bool, message: str) -> str:
    """Uploads files of a folder in one commit; makes the repository if it does not exist.

    Args:
        folder: the run folder.
        files: names in it.
        repo: owner/name.
        is_public: whether a new repository is public; an existing one is not changed.
        message: message of the commit.

    Returns:
        The address of the repository.

    Raises:
        InputError: the token may not write there.
        StoppedError: the upload failed.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(library_name="debias_ssl")
    try:
        made = api.create_repo(repo, private=not is_public, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=files, commit_message=message)
    except Exception as error:  # a network raises nearly anything
        response = error.response if isinstance(error, HfHubHTTPError) else None
        if response is not None and response.status_code in DENIED:
            raise InputError(f"the token may not write to --repo {repo!r} ({reason(error)})") from error
        raise StoppedError(
            f"cannot upload to {repo!r} ({type(error).__name__}: {reason(error)}); run the same command again"
        ) from error
    return str(made)
