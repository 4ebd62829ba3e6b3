"""Saving fitted selectors to a folder or the Hub and loading them again: JSON and safetensors, never pickle."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.exceptions import NotFittedError

from histodistill.selection.files import write_bytes
from histodistill.selection.versions import installed_versions


#: The file with the class, its parameters, plain numbers and versions, in JSON.
CONFIG_NAME = "config.json"
#: The file with the fitted arrays.
ARRAYS_NAME = "selector.safetensors"
#: Version of this layout of two files, written into `config.json`.
FORMAT_VERSION = 1

# What an id on the Hub looks like: user/name.
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Characters of a name from a file that a message shows, at most.
_SHOWN = 80
# Packages whose versions are recorded, since the choice may depend on them.
_VERSIONS_OF = ("histodistill", "infomap", "faiss-cpu", "scikit-learn", "scipy", "numpy")


class PretrainedMixin:
    """`save_pretrained`, `from_pretrained` and `push_to_hub` for a scikit-learn style estimator.

    Parameters are what `get_params` returns and must be plain numbers and strings. Fitted state is every attribute
    whose name ends in one underscore and does not begin with one: arrays go to `selector.safetensors`, but for arrays
    of texts, which it cannot hold; these and plain numbers go to `config.json`, which also names the class and the
    versions of the libraries that made the selection.
    """

    # Comes from scikit-learn's BaseEstimator.
    get_params: Callable[..., dict[str, Any]]

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Writes `config.json` and `selector.safetensors` to `save_directory`, which is made if needed.

        Each file is replaced in one step, and the configuration, written last, holds the checksum of the arrays: a
        folder is either complete or refused by `from_pretrained`.

        Raises:
            NotFittedError: (a ValueError) if the selector is not fitted.
            ValueError: If `save_directory` is a file.
        """
        from safetensors.numpy import save

        arrays, numbers = _fitted_state(self)
        if "selected_indices_" not in arrays:
            raise NotFittedError(f"this {type(self).__name__} is not fitted: call fit before save_pretrained")
        folder = Path(save_directory)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"save_directory={str(folder)!r} is a file: give a folder")
        folder.mkdir(parents=True, exist_ok=True)
        payload = save(arrays)
        config = {
            "class_name": type(self).__name__,
            "format_version": FORMAT_VERSION,
            "params": {name: _plain(value) for name, value in sorted(self.get_params(deep=False).items())},
            "fitted": numbers,
            "arrays_sha256": hashlib.sha256(payload).hexdigest(),
            "versions": installed_versions(_VERSIONS_OF),
        }
        write_bytes(folder / ARRAYS_NAME, payload)
        write_bytes(folder / CONFIG_NAME, (json.dumps(config, indent=2) + "\n").encode())

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Loads a fitted selector from a folder or from the Hub.

        Args:
            pretrained_name_or_path: A folder that `save_pretrained` wrote, or a Hub id such as
                `"user/histology-selector"`.
            revision: Branch, tag or commit of the Hub repository.
            token: Hub token for a private repository.
            cache_dir: Where downloads are kept; the usual Hugging Face cache by default.
            local_files_only: Use only what is in that cache.

        Returns:
            The fitted selector. `BaseSelector.from_pretrained` takes a selector of any class, a subclass only its own.

        Raises:
            ValueError: If there is no such folder or repository, if it is incomplete or damaged, or if it holds a
                selector of another class.
        """
        folder = Path(pretrained_name_or_path)
        if folder.is_dir():
            files = {name: folder / name for name in (CONFIG_NAME, ARRAYS_NAME)}
        else:
            hub_options = {
                "revision": revision,
                "token": token,
                "cache_dir": cache_dir,
                "local_files_only": local_files_only,
            }
            files = _download(str(pretrained_name_or_path), hub_options)
        return _load(cls, str(pretrained_name_or_path), files)

    @classmethod
    def loadable_classes(cls) -> dict[str, type[Self]]:
        """The classes that `from_pretrained` can load, by their names; here this class alone."""
        return {cls.__name__: cls}

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload selector",
    ) -> str:
        """Uploads what `save_pretrained` writes to the Hub model repository `repo_id`, made if needed.

        Returns:
            The address of the commit.

        Raises:
            NotFittedError: (a ValueError) if the selector is not fitted.
        """
        from huggingface_hub import HfApi

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            api = HfApi(token=token)
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message
            )
        return commit.commit_url


def _fitted_state(selector: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Attributes that `fit` has set, by name: arrays, and plain values."""
    arrays, numbers = {}, {}
    for name, value in sorted(vars(selector).items()):
        if not _is_fitted(name):
            continue
        if isinstance(value, np.ndarray) and value.dtype.kind == "U":
            numbers[name] = value.tolist()  # safetensors holds no texts
        elif isinstance(value, np.ndarray):
            arrays[name] = np.ascontiguousarray(value)
        else:
            numbers[name] = _plain(value)
    return arrays, numbers


def _plain(value: Any) -> Any:
    """A number of numpy as one of Python, which JSON takes; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def _download(name: str, hub_options: dict[str, Any]) -> dict[str, Path]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    remedy = "give a folder that save_pretrained wrote or a Hub id such as user/histology-selector"
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise ValueError(f"there is no selector folder {name!r}: {remedy}")
    try:
        return {file: Path(hf_hub_download(name, file, **hub_options)) for file in (CONFIG_NAME, ARRAYS_NAME)}
    except (HfHubHTTPError, OSError, ValueError) as error:  # ValueError: ids that the Hub refuses
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{name!r} is neither a folder nor a selector that can be fetched from the Hub ({reason}): {remedy}"
        ) from error


def _load(cls: type[PretrainedMixin], name: str, files: dict[str, Path]) -> Any:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    for file, path in files.items():
        if not path.is_file():
            raise ValueError(f"{name!r} has no {file}: give a folder that save_pretrained wrote")
    damaged = f"{name!r} is incomplete or damaged: save the selector again"
    payload = files[ARRAYS_NAME].read_bytes()
    try:
        config = json.loads(files[CONFIG_NAME].read_text(encoding="utf-8"))
        class_name, params, numbers = _shown(str(config["class_name"])), dict(config["params"]), dict(config["fitted"])
        checksum = config["arrays_sha256"]
        texts = {attribute: _texts(value) for attribute, value in numbers.items() if isinstance(value, list)}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{name!r} has a {CONFIG_NAME} that describes no selector: save it again") from error

    selector_class = _class_to_load(cls, class_name, name)
    if hashlib.sha256(payload).hexdigest() != checksum:
        raise ValueError(damaged)
    try:
        arrays = load(payload)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:  # the last three for types that numpy lacks
        raise ValueError(damaged) from error
    unknown = sorted(set(params) - set(selector_class().get_params(deep=False)))
    if unknown:
        raise ValueError(
            f"{name!r} has parameters that {class_name} does not know ({_shown(', '.join(unknown))}): it was saved by "
            "another version, install that one or save the selector again"
        )
    selector = selector_class(**params)
    for attribute, value in {**numbers, **texts, **arrays}.items():
        if not _is_fitted(attribute):  # it could take the place of a method
            raise ValueError(
                f"{name!r} holds an array or a number {_shown(attribute)}, which none learns: save it again"
            )
        setattr(selector, attribute, value)
    return selector


def _shown(text: str) -> str:
    """A text from a file on one line of a message, without characters that a terminal would obey."""
    return ascii(text[:_SHOWN])[1:-1]


def _is_fitted(attribute: str) -> bool:
    """Whether an attribute is one that `fit` sets, by its name."""
    return attribute.endswith("_") and not attribute.startswith("_")


def _texts(values: list[Any]) -> np.ndarray:
    if not all(isinstance(value, str) for value in values):
        raise TypeError("an array of something else than texts")
    return np.array(values, dtype=str)


def _class_to_load(cls: type[PretrainedMixin], class_name: str, name: str) -> type[PretrainedMixin]:
    loadable = cls.loadable_classes()
    if class_name in loadable:
        return loadable[class_name]
    if cls.__name__ in loadable:  # only itself: it is no common base of several
        raise ValueError(
            f"{name!r} holds a {class_name}, not a {cls.__name__}: load it with {class_name}.from_pretrained"
        )
    raise ValueError(f"{name!r} holds a {class_name!r}: the known selectors are {', '.join(loadable)}")
