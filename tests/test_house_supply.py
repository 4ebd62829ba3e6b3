"""What comes from elsewhere is data: nothing in the code unpickles it, runs it, or takes it without its checksum.

The code is read, as `test_house.py` does it, and each exception is named here with its reason.
"""

from __future__ import annotations

import ast
import configparser
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_house import ROOT, module_files, read_imports


#: Modules of which each runs what the bytes that it reads say.
UNPICKLERS = {"_pickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "pickle", "shelve", "torch.hub"}
#: Calls that load or run what they are given, however they are spelled, by their last names.
RUNNERS = {
    "eval", "exec", "os.popen", "os.system", "pandas.read_pickle", "pd.read_pickle", "runpy.run_path",
    "runpy.run_module",
    "torch.hub.load", "torch.jit.load", "torch.load", "torch.package.PackageImporter", "yaml.full_load", "yaml.load",
    "yaml.load_all", "yaml.unsafe_load", "joblib.load", "importlib.util.spec_from_file_location", "__import__",
}  # fmt: skip
#: Readers of numpy that unpickle unless they are told not to.
READERS = ("np.load", "numpy.load", "np.lib.format.read_array", "numpy.lib.format.read_array")
#: Loaders of libraries that prefer safetensors and would else take a pickle.
LOADERS = {"model_class.from_pretrained"}
#: Options that a call may have with this value alone.
ONLY = {
    "allow_pickle": False,
    "shell": False,
    "trust_remote_code": False,
    "use_safetensors": True,
    "weights_only": True,
    "verify": True,
}
#: Who may import a module by a name that is not written in the code, and where the name is from.
BY_NAME = {
    "histodistill": "the table of public names",
    "selection": "the table of public names",
    "training.cli": "the table of commands",
    "training.end_to_end.measuring": "a request that `distill` itself has just written for its own child",
    "training.metrics": "the table of metrics",
    "training.publishing.metric_spaces": "the class of a metric of ours",
}
#: Who may fetch, with what, and how it is known that what came is what was meant.
FETCHERS = {
    "requests.get": {"training.data.download": "compared with its checksum before it gets its name"},
    "requests.head": {"training.cli.software_checks": "nothing is kept"},
    "hf_hub_download": {
        "selection.storage": "huggingface_hub compares; the arrays have a checksum of their own",
        "training.models.encoder_licences": "a text of which one field is read",
        "training.models.pretrained": "huggingface_hub compares; JSON and safetensors",
    },
    "snapshot_download": {
        "training.models.hub_files": "huggingface_hub compares; JSON and safetensors by their names",
        "training.publishing.verify": "huggingface_hub compares; what it says of itself is checked by our own hashes",
    },
    "load_dataset": {"training.data.hub_datasets": "huggingface_hub compares; datasets from 4 on runs no script"},
}
#: Calls that would fetch in another way.
OTHER_FETCHERS = {
    "urllib.request.urlopen", "urlopen", "urlretrieve", "urllib.request.urlretrieve", "requests.request",
    "requests.post",
    "httpx.get", "httpx.Client", "wget.download", "torch.hub.download_url_to_file",
    "torch.hub.load_state_dict_from_url",
    "requests.Session", "evaluate.load",
}  # fmt: skip


def sources() -> dict[str, Path]:
    """Every file of code that ships, and those that build it: module → its file."""
    others = {"histodistill": ROOT / "histodistill" / "__init__.py", "setup": ROOT / "setup.py"}
    return {**module_files(), **others}


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """All of a file's syntax tree."""
    return tuple(ast.walk(ast.parse(path.read_text())))


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Each call of a file, and what is called as it is spelled: `np.load`."""
    for node in nodes(path):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def option(call: ast.Call, name: str) -> ast.expr | None:
    """What a call gives for an option, if it does."""
    return next((keyword.value for keyword in call.keywords if keyword.arg == name), None)


def faults(path: Path) -> list[str]:
    """What a file does that no file may do."""
    found = []
    for each in read_imports(path):
        names = {each.module.split(".")[0], each.module, f"{each.module}.{each.name}"}
        found += [f"line {each.line} imports {each.module}" for _ in names & UNPICKLERS]
    for called, call in calls(path):
        where = f"line {call.lineno}: {called}"
        if called in RUNNERS | OTHER_FETCHERS:
            found.append(where)
        if called in READERS and option(call, "allow_pickle") is None:
            found.append(f"{where} without allow_pickle=False")
        if called in LOADERS and option(call, "use_safetensors") is None:
            found.append(f"{where} without use_safetensors=True")
        for name, only in ONLY.items():
            value = option(call, name)
            if value is not None and not (isinstance(value, ast.Constant) and value.value is only):
                found.append(f"{where} with {name}={ast.unparse(value)}")
    return found


def test_nothing_unpickles_or_runs_what_it_reads():
    wrong = {module: found for module, path in sources().items() if (found := faults(path))}
    assert not wrong


def test_modules_by_name_are_those_of_our_tables():
    found = {
        module
        for module, path in sources().items()
        for called, call in calls(path)
        if called.endswith("import_module") and not isinstance(call.args[0], ast.Constant)
    }
    assert found == BY_NAME.keys()


def test_who_fetches():
    found: dict[str, set[str]] = {name: set() for name in FETCHERS}
    for module, path in sources().items():
        for called, _ in calls(path):
            if called in found:
                found[called].add(module)
    assert found == {name: set(modules) for name, modules in FETCHERS.items()}


def test_a_dictionary_of_options_asks_for_no_code():
    """Options that are handed on as `**options` are written as a dictionary somewhere; `verify` is a command, too."""
    only = {name: value for name, value in ONLY.items() if name != "verify"}
    for module, path in sources().items():
        for node in nodes(path):
            for key, value in zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ():
                if isinstance(key, ast.Constant) and key.value in only:
                    assert isinstance(value, ast.Constant) and value.value is only[key.value], module


def test_addresses_are_encrypted():
    own = "http://{host}:{port}"  # the page, on this machine
    for module, path in sources().items():
        lines = path.read_text().splitlines()
        wrong = [line for line in lines if "http://" in line.replace(own, "") and "schemas" not in line]
        assert not wrong, module


def test_libraries_are_those_that_run_no_code_of_a_repository():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    needed = setup["options"]["install_requires"].split()
    # Earlier ones run the script of a dataset, or unpickle weights by default.
    assert {"datasets>=4.0", "safetensors>=0.8"} <= set(needed) and any(
        each.startswith("torch>=2.6") for each in needed
    )


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import pickle", "imports pickle"),
        ("from joblib import load", "imports joblib"),
        ("def f():\n    from torch import hub", "imports torch"),
        ("torch.load('x')", "torch.load"),
        ("np.load('x')", "without allow_pickle=False"),
        ("np.load('x', allow_pickle=True)", "allow_pickle=True"),
        ("np.load('x', allow_pickle=flag)", "allow_pickle=flag"),
        ("yaml.load(text)", "yaml.load"),
        ("eval('1')", "eval"),
        ("subprocess.run('ls', shell=True)", "shell=True"),
        ("x.from_pretrained('a', trust_remote_code=True)", "trust_remote_code=True"),
        ("model_class.from_pretrained('a')", "without use_safetensors=True"),
        ("urllib.request.urlopen('x')", "urlopen"),
        ("requests.get('x', verify=False)", "verify=False"),
    ],
)
def test_faults_are_found(tmp_path, code, found):
    (tmp_path / "code.py").write_text(code)
    assert any(found in fault for fault in faults(tmp_path / "code.py"))
