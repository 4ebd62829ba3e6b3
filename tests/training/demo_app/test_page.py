from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from browsers import PATIENCE, assert_readable, needs_browser, open_browser, show_as, wait_for

from histodistill.training.data.image_dataset import read_image_dataset, write_image_dataset
from histodistill.training.demo_app import serve
from histodistill.training.running.errors import InputError
from histodistill.training.running.options import run_script


needs_gradio = pytest.mark.skipif(
    find_spec("gradio") is None, reason="gradio is not installed: pip install '.[demo-app]'"
)
# What `python -m` does. Where tests run in the background of a shell, Ctrl-C would be ignored.
SERVE = """
import runpy, signal

signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("histodistill.training.demo_app.serve", run_name="__main__", alter_sys=True)
"""
# The same with trainings that end only when they are stopped, and that tell when they begin and end.
SERVE_ENDLESS = (
    """
import time
from histodistill.training.demo_app import jobs

def endless(*args, progress, **options):
    print("training began", flush=True)
    try:
        while True:
            time.sleep(0.01)
            progress.update()
    finally:
        print("training ended", flush=True)

jobs.fit_classifier = endless
"""
    + SERVE
)


# The command.


def read(*argv: str) -> serve.DemoAppConfig:
    return serve.make_parser().read(argv)


@pytest.fixture
def fake_page(monkeypatch, tmp_path) -> ModuleType:
    """A module in the place of the page, as if gradio were installed, beside `run`; tests give it a `serve_page`."""
    shard = tmp_path / "run" / "distilled" / "data" / "train-00000-of-00001.parquet"
    shard.parent.mkdir(parents=True)
    shard.touch()
    monkeypatch.chdir(tmp_path)
    module = ModuleType("histodistill.training.demo_app.page")
    monkeypatch.setattr(serve, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "True")
    return module


def test_options_have_defaults_that_keep_the_page_private():
    config = read("run")
    assert (config.run, config.data, config.host, config.port) == (Path("run"), None, "127.0.0.1", 7860)
    assert config == serve.DemoAppConfig(run="run")


@pytest.mark.parametrize("port", ["0", "65536"])
def test_impossible_port_is_refused_in_one_sentence(port, capsys):
    with pytest.raises(SystemExit) as stopped:
        read("run", "--port", port)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"error: --port={port} is out of range: it must be 1 to 65535\n"


def test_without_gradio_one_sentence_says_what_to_install(fake_page, monkeypatch, capsys):
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    fake_page.serve_page = lambda *options: pytest.fail("the page was started")
    with pytest.raises(SystemExit) as stopped:
        run_script(serve.make_parser, serve.run, ["run"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the page needs gradio") and "pip install '.[demo-app]'" in error
    assert error.count("\n") == 1
    with pytest.raises(InputError, match="the page needs gradio"):
        serve.run(serve.DemoAppConfig(run="run"))


def test_page_is_started_without_analytics(fake_page):
    started = []
    fake_page.serve_page = lambda *options: started.append((options, os.environ["GRADIO_ANALYTICS_ENABLED"]))
    serve.run(read("run", "--port", "7000"))
    assert started == [((Path("run"), None, "127.0.0.1", 7000), "False")]


def test_ctrl_c_closes_the_page(fake_page):
    def interrupted(*options):
        raise KeyboardInterrupt

    fake_page.serve_page = interrupted
    serve.run(read("run"))


# The page.


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_pipeline, tiny_pool) -> Path:
    """A run with a pipeline, its pool, and a distilled set of the pool's first 20 images in communities."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    folder.mkdir()
    for source in (tiny_pipeline, tiny_pool):
        (folder / source.name).symlink_to(source)
    images, columns, names = read_image_dataset(tiny_pool)
    columns = {name: values[:20] for name, values in columns.items()}
    columns["community"] = np.arange(20) // 5 % 2
    columns["soft_label"] = np.where(np.arange(5) == columns["label"][:, None], 0.8, 0.05).astype(np.float32)
    write_image_dataset(folder / "distilled" / "data", images[:20], columns, names)
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(
    run: Path, environment: dict[str, str], log: Path, *options: object, script: str = SERVE
) -> subprocess.Popen:
    argv = [sys.executable, "-c", script, str(run), *map(str, options)]
    with open(log, "w") as file:
        return subprocess.Popen(argv, env=environment, cwd=log.parent, stdout=file, stderr=file)


@contextlib.contextmanager
def served(run: Path, environment: dict[str, str], log: Path, *options: object, script: str = SERVE) -> Iterator[str]:
    """The address of the page while it is served."""
    port = free_port()
    server = start(run, environment, log, *options, "--port", port, script=script)
    deadline = time.monotonic() + PATIENCE
    while f"http://127.0.0.1:{port} shows the run" not in log.read_text():
        assert server.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}/"
    # Ctrl-C is how a user ends it.
    server.send_signal(signal.SIGINT)
    assert server.wait(timeout=PATIENCE) == 0, log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def page(run, tiny_npz, offline_environment, tmp_path_factory) -> Iterator[str]:
    """The address of the page while it is served."""
    log = tmp_path_factory.mktemp("page") / "log"
    with served(run, offline_environment, log, "--data", tiny_npz) as address:
        yield address


def fetch(url: str) -> tuple[int, dict[str, str], str]:
    # Without the proxies that the environment may name.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=PATIENCE) as answer:
            return answer.status, dict(answer.headers), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read().decode()


@needs_gradio
def test_page_names_no_path_and_serves_no_file(page, run, tiny_npz):
    status, headers, html = fetch(page)
    assert status == 200
    assert "<svg" in fetch(f"{page}favicon.ico")[2]
    assert headers["content-security-policy"].startswith("default-src 'self';")
    for text in (html, fetch(f"{page}config")[2]):
        assert str(run.parent) not in text and str(tiny_npz.parent) not in text
    for file in (run / "distilled" / "data" / "train-00000-of-00001.parquet", tiny_npz, Path("/etc/hostname")):
        assert fetch(f"{page}gradio_api/file={file}")[0] in (403, 404)


@needs_gradio
def test_port_in_use_is_one_sentence(page, run, offline_environment, tmp_path):
    port = page.rstrip("/").rpartition(":")[2]
    server = start(run, offline_environment, tmp_path / "log", "--port", port)
    assert server.wait(timeout=PATIENCE) == 2
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last == (
        f"error: --host=127.0.0.1 --port={port} cannot be listened on: give another port, or end what uses it"
    )


@pytest.fixture
def browser(tmp_path):
    with open_browser(tmp_path) as driver:
        yield driver


def open_tab(browser, name: str) -> None:
    """Chooses a tab; gradio keeps a hidden copy of each to measure its width."""
    tabs = [tab for tab in browser.find_elements("css selector", "button[role=tab]") if tab.text.strip() == name]
    browser.execute_script("arguments[0].click()", tabs[0])


def texts(browser, selector: str) -> list[str]:
    return [item.text for item in browser.find_elements("css selector", selector) if item.is_displayed()]


def is_shown(browser, id: str) -> bool:
    return any(item.is_displayed() for item in browser.find_elements("id", id))


def start_training(browser, address: str) -> None:
    """Opens the page and starts a training, which may have to wait for its turn."""
    browser.get(address)
    wait_for(browser, lambda: texts(browser, ".hd-cards"))
    open_tab(browser, "Train")
    wait_for(browser, lambda: is_shown(browser, "train"))
    browser.find_element("id", "train").click()
    wait_for(browser, lambda: is_shown(browser, "stop"))


@needs_gradio
@needs_browser
@pytest.mark.parametrize(("width", "colours"), [(1280, "light"), (390, "dark")])
def test_page_in_a_browser(page, browser, run, width, colours):
    show_as(browser, width, colours)
    browser.get(page)

    # At first sight: the best image of each class and all 20, verdict and scores.
    assert len(wait_for(browser, lambda: texts(browser, ".hd-strip img, .hd-first img"))) == 25
    assert ["Not audited" in text or "no scores yet" in text for text in texts(browser, ".hd-card")] == [True, True]
    assert browser.title == "Private tiles, distilled – histodistill"
    assert_readable(browser)

    open_tab(browser, "Generate")
    assert wait_for(browser, lambda: texts(browser, ".hd-large figcaption")) == ["seed 0\ndistilled"]
    assert_readable(browser)
    browser.find_element("id", "generate").click()
    captions = wait_for(browser, lambda: (found := texts(browser, ".hd-large figcaption"))[1:] and found)
    # Classes take turns in the pool. Made in another batch, an image may be apart by rounding.
    assert [caption.partition("\n")[0] for caption in captions] == [f"seed {i}" for i in range(6)]
    assert [i for i, caption in enumerate(captions) if "distilled" in caption] == [0, 5]
    assert_readable(browser)

    open_tab(browser, "Browse")
    headings = wait_for(browser, lambda: [text for text in texts(browser, ".hd h3") if text.startswith("Community")])
    assert headings == ["Community 0 2 chosen", "Community 1 2 chosen"]
    assert_readable(browser)

    open_tab(browser, "Audit")
    wait_for(browser, lambda: [t for t in texts(browser, ".hd-note") if "No privacy audit has been made" in t])
    assert_readable(browser)
    open_tab(browser, "Scores")
    wait_for(browser, lambda: [t for t in texts(browser, ".hd p") if "This run has no scores yet" in t])
    assert_readable(browser)

    open_tab(browser, "Train")
    wait_for(browser, lambda: is_shown(browser, "train"))
    chosen = browser.find_element("css selector", "#recipe input:checked").find_element("xpath", "..")
    assert chosen.text == "the teacher's soft labels (recommended)"
    assert_readable(browser)
    steps = browser.find_element("css selector", "#steps input[type=number]")
    browser.execute_script(
        "arguments[0].value = 20; for (const name of ['input', 'change', 'blur']) "
        "arguments[0].dispatchEvent(new Event(name, {bubbles: true}))",
        steps,
    )
    browser.find_element("id", "train").click()
    wait_for(
        browser, lambda: texts(browser, "#progress")[0].startswith("Trained for 20 steps on 20 distilled images.")
    )
    assert "On 20 real test tiles" in texts(browser, "#progress")[0]
    wait_for(browser, lambda: is_shown(browser, "train") and not is_shown(browser, "stop"))
    assert_readable(browser)

    # Nothing came from elsewhere, and nothing tried to.
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    # The browser's own first page asks for things, too.
    requested = [request["request"]["url"] for request in sent if request["documentURL"].startswith(page)]
    assert len([url for url in requested if url.startswith(page)]) > 1
    assert [url for url in requested if not url.startswith((page, "data:", "blob:"))] == []
    refused = [
        entry["message"] for entry in browser.get_log("browser") if "Content Security Policy" in entry["message"]
    ]
    assert refused == []


@needs_gradio
@needs_browser
def test_closed_and_reloaded_tabs_end_their_training(run, browser, offline_environment, tmp_path):
    log = tmp_path / "log"

    def trainings() -> tuple[int, int]:
        """How many began, and how many ended."""
        text = log.read_text()
        return text.count("training began"), text.count("training ended")

    with served(run, offline_environment, log, script=SERVE_ENDLESS) as address:
        start_training(browser, address)
        wait_for(browser, lambda: texts(browser, "#progress")[0].startswith("Step "))
        first = browser.current_window_handle

        # One at a time: a second tab waits, and one that is closed before its turn is forgotten.
        browser.switch_to.new_window("tab")
        start_training(browser, address)
        third = browser.current_window_handle
        browser.switch_to.new_window("tab")
        start_training(browser, address)
        time.sleep(2)
        assert texts(browser, "#progress")[0].startswith("Waiting for its turn")
        assert trainings() == (1, 0)
        browser.close()

        # Closing the tab of the one that runs ends it, and the next begins.
        browser.switch_to.window(first)
        browser.close()
        browser.switch_to.window(third)
        wait_for(browser, lambda: trainings() == (2, 1))
        wait_for(browser, lambda: texts(browser, "#progress")[0].startswith("Step "))

        # So does a reload, after which all is as at the beginning.
        browser.refresh()
        wait_for(browser, lambda: trainings() == (2, 2))
        start_training(browser, address)
        wait_for(browser, lambda: trainings() == (3, 2))

        browser.find_element("id", "stop").click()
        wait_for(browser, lambda: trainings() == (3, 3))
        wait_for(browser, lambda: is_shown(browser, "train") and not is_shown(browser, "stop"))
        assert texts(browser, "#progress") == ["Stopped."]
