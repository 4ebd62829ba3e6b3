"""The demo page: what `histodistill demo-app` serves.

Needs gradio, which is an extra: only `serve` imports this module, and after it has seen to that.
"""

from __future__ import annotations

import ipaddress
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
import torch
from diffusers import DiffusionPipeline
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from histodistill.training.data.sources import load_tiles
from histodistill.training.data.tiles import TileSource
from histodistill.training.demo_app import run_data as show
from histodistill.training.demo_app.jobs import (
    RECIPES,
    available_recipes,
    generate_like_pool,
    progress_text,
    train_live,
)
from histodistill.training.evaluation.cells import check_same_kind
from histodistill.training.models.loading import load_pipeline
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.stages import read_record


#: Images that one click generates, at most: more would keep everybody else waiting.
MOST_IMAGES = 12
# Clicks that wait for their turn, at most; further ones are told to come back later.
_LONGEST_QUEUE = 16
# Stands for all communities in the menu of communities, whose own numbers are -1 and above.
_ALL = -2
# A browser loads nothing from elsewhere, whatever gradio puts on the page.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'none'"
)
# Looks of the page, with classes that begin with hd- for what it adds to gradio's own.
_CSS = """
.gradio-container { width: 100% !important; max-width: 62rem !important; margin: 0 auto !important; }
.html-container { padding: 0 !important; }
.hd { --hd-soft: #5b6470; color: var(--body-text-color); overflow-wrap: break-word; }
.dark .hd { --hd-soft: #9aa3ad; }
.hd h1 { font-size: 1.5rem; line-height: 1.2; margin: .25rem 0; }
.hd h3 { font-size: 1rem; margin: 1.25rem 0 .4rem; }
.hd p { max-width: 44rem; margin: .4rem 0; }
.hd ul { max-width: 44rem; margin: .4rem 0; padding-left: 1.2rem; list-style: none; }
.hd li { margin: .3rem 0; text-indent: -1.2rem; }
.hd-soft { color: var(--hd-soft); font-weight: 400; }
.hd-note { padding: .6rem .8rem; background: var(--background-fill-secondary); border-left: 3px solid #8e3b73; }
.hd-good { color: #00805a; }
.hd-bad { color: #c62f2f; }
.dark .hd-good { color: #3ecf9b; }
.dark .hd-bad { color: #ff7b7b; }
.hd-tiles { display: grid; gap: .5rem; }
.hd-small { grid-template-columns: repeat(auto-fill, minmax(4.5rem, 1fr)); }
.hd-large { grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); }
.hd-tiles figure { margin: 0; max-width: 12rem; }
.hd-tiles img { display: block; width: 100%; height: auto; image-rendering: pixelated; border-radius: 3px; }
.hd-tiles figcaption { font-size: .7rem; line-height: 1.25; color: var(--hd-soft); }
.hd-tiles figcaption span { display: block; }
.hd-large figcaption { font-size: .8rem; }
.hd-scroll { overflow-x: auto; }
.hd-picture { display: block; width: 100%; min-width: 40rem; height: auto; background: white; }
.hd table { width: 100%; border: 0 !important; border-collapse: collapse; font-variant-numeric: tabular-nums;
  font-size: .9rem; }
.hd th, .hd td { padding: .35rem .5rem; border: 0; border-bottom: 1px solid var(--border-color-primary);
  text-align: right; vertical-align: baseline; background: none; }
.hd th:first-child { text-align: left; padding-left: 0; min-width: 9rem; }
.hd thead, .hd tbody, .hd tr { border: 0 !important; background: none !important; }
.hd thead th { color: var(--hd-soft); font-weight: 600; }
.hd tbody th { font-weight: 400; }
.hd tbody .hd-own th { font-weight: 600; }
.hd td { white-space: nowrap; }
@media (max-width: 36rem) {
  .gradio-container main { padding: .75rem 1rem !important; }
  .hd table { font-size: .8rem; }
  .hd th, .hd td { padding: .35rem .25rem; }
  .hd th:first-child { min-width: 6.5rem; overflow-wrap: anywhere; }
  .hd td small { display: block; }
  .tab-container button { padding: 0 .5rem !important; font-size: .9rem !important; }
}
"""


class _SafeHeaders:
    """Adds the policy on what a browser may load to every answer."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(b"content-security-policy", _POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message.get("headers", []), *headers]}
            await send(message)

        await self.app(scope, receive, send_with_policy)


def build_page(run: show.DemoRun, pipeline: DiffusionPipeline | None, real: TileSource | None) -> gr.Blocks:
    """The page of a run, ready to be launched.

    Args:
        run: What to show.
        pipeline: What images are generated from; None leaves that out.
        real: What classifiers are scored on; None leaves the scores out.
    """
    # One computation at a time, of whoever: the machine has one set of cores.
    busy = {"concurrency_id": "compute", "concurrency_limit": 1, "api_visibility": "private"}
    quick = {"api_visibility": "private", "show_progress": "hidden"}
    with gr.Blocks(analytics_enabled=False, title="histodistill") as page:
        gr.HTML(show.intro_html(run))
        with gr.Tab("Generate"):
            _generate_tab(run, pipeline, busy)
        with gr.Tab("Browse"):
            _browse_tab(run, quick)
        with gr.Tab("Audit"):
            gr.HTML(show.audit_html(run))
        with gr.Tab("Scores"):
            gr.HTML(show.scores_html(run))
        with gr.Tab("Train"):
            _train_tab(run, real, busy, quick)
    return page


def _generate_tab(run: show.DemoRun, pipeline: DiffusionPipeline | None, busy: dict[str, Any]) -> None:
    """Images of a class and of seeds that one types in."""
    if pipeline is None:
        gr.Markdown("This run has no pipeline, so there is nothing to generate from.")
        return
    gr.Markdown(
        "Each seed gives one image, always the same. Those of the distilled set, which Browse shows, make its images "
        "again."
    )
    first = int(run.columns["seed"][0]) if "seed" in run.columns else 0
    with gr.Row():
        label = gr.Dropdown(_classes(run), value=int(run.labels[0]), label="Class", min_width=200)
        seed = gr.Number(first, label="Seed", min_width=140)
        count = gr.Slider(1, MOST_IMAGES, 6, step=1, label="Images, with this seed and the next ones", min_width=200)
    button = gr.Button("Generate", variant="primary", elem_id="generate")
    images = gr.HTML("", min_height=180)

    def generate(label: int, seed: float | None, count: int) -> str:
        try:
            start = show.parse_seed(seed)
        except InputError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error
        seeds = [min(start, show.LARGEST_SEED - int(count) + 1) + i for i in range(int(count))]
        return show.generated_html(run, label, seeds, generate_like_pool(pipeline, run, label, seeds))

    button.click(generate, [label, seed, count], images, **busy)


def _browse_tab(run: show.DemoRun, quick: dict[str, Any]) -> None:
    """The distilled set by class and community, and the maps of the communities."""

    def choices(label: int) -> list[tuple[str, int]]:
        groups = show.communities_of(run, label)
        return [("all", _ALL), *((f"{number} ({len(members)} chosen)", number) for number, members in groups)]

    first = int(run.labels[0])
    with gr.Row():
        label = gr.Dropdown(_classes(run), value=first, label="Class", min_width=200, elem_id="class")
        community = gr.Dropdown(choices(first), value=_ALL, label="Community", min_width=200, elem_id="community")
    with gr.Accordion("Community map", open=False, elem_id="map"):
        gr.HTML(show.maps_html(run))
    images = gr.HTML(show.communities_html(run, first))

    def choose_class(label: int) -> tuple[gr.Dropdown, str]:
        return gr.Dropdown(choices(label), value=_ALL), show.communities_html(run, label)

    def choose_community(label: int, community: int) -> str:
        return show.communities_html(run, label, None if community == _ALL else community)

    label.input(choose_class, label, [community, images], **quick)
    community.input(choose_community, [label, community], images, **quick)


def _train_tab(run: show.DemoRun, real: TileSource | None, busy: dict[str, Any], quick: dict[str, Any]) -> None:
    """A classifier that is trained while one looks on, and can be stopped."""
    scored = (
        "scored once on the real test tiles" if real else "without a score, since no real tiles were given (--data)"
    )
    gr.Markdown(f"A small ConvNet, trained on the {len(run.images):,} distilled images alone, {scored}.")
    with gr.Row():
        names = available_recipes(run)
        recipe = gr.Radio([(RECIPES[name][0], name) for name in names], value=names[0], label="Learns from")
        steps = gr.Slider(20, 1000, 200, step=20, label="Steps", min_width=200, elem_id="steps")
    with gr.Row():
        button = gr.Button("Train a classifier", variant="primary", scale=2, min_width=180, elem_id="train")
        stop = gr.Button("Stop", scale=1, min_width=80, elem_id="stop")
    text = gr.Markdown("", elem_id="progress")
    look = {"x": "step", "height": 240, "min_width": 280, "buttons": [], "visible": False}
    with gr.Row():
        loss = gr.LinePlot(y="loss", title="Loss", **look)
        accuracy = gr.LinePlot(y="ACC", title="ACC on real validation tiles", y_lim=[0, 1], **look)

    def plot(history: list[dict[str, Any]], key: str, name: str, steps: int) -> gr.LinePlot:
        points = [(record["step"], record[key]) for record in history if key in record]
        # With a single point there is no line to draw.
        return gr.LinePlot(pd.DataFrame(points, columns=["step", name]), x_lim=[0, steps], visible=len(points) > 1)

    def train(recipe: str, steps: int) -> Iterator[tuple[str, gr.LinePlot, gr.LinePlot]]:
        try:
            for progress in train_live(run, real, recipe, int(steps)):
                yield (
                    progress_text(progress),
                    plot(progress.history, "loss", "loss", int(steps)),
                    plot(progress.history, "validation_accuracy", "ACC", int(steps)),
                )
        except InputError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error

    training = button.click(train, [recipe, steps], [text, loss, accuracy], show_progress="hidden", **busy)
    stop.click(lambda: "Stopped.", None, text, cancels=[training], **quick)


def _classes(run: show.DemoRun) -> list[tuple[str, int]]:
    """Names and labels of the classes, for a menu."""
    return [(name, label) for label, name in enumerate(run.class_names)]


def load_finished_pipeline(run: Path) -> DiffusionPipeline | None:
    """The pipeline of a run on the best device, or None where it has no finished one."""
    folder = run / "pipeline"
    record = read_record(folder)
    if not record or not record["complete"]:
        return None
    pipeline = load_pipeline(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def load_real(data: str | Path | None, folder: Path, run: show.DemoRun) -> TileSource | None:
    """The real tiles that classifiers are scored on, or None where none are named.

    Args:
        data: What names them.
        folder: Folder of the run.
        run: What the page shows of it.

    Raises:
        InputError: If they are of another kind than the distilled set, or have no test split.
    """
    if data is None:
        return None
    real = load_tiles(data, image_size=run.images.shape[1])
    check_same_kind(folder / "distilled", run.images, run.class_names, real)
    if "test" not in real.splits:
        raise InputError(
            f"{param('data')}={real.name} has no test split: give tiles with one, or leave {param('data')} out"
        )
    return real


def warning_line(host: str, run: show.DemoRun) -> str | None:
    """What to say of a page that other machines can reach, and None of one that they cannot."""
    try:
        is_local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = host == "localhost"
    if is_local:
        return None
    passed = bool(run.audit) and all(part.verdict == "passed" for part in run.audit)
    found = "" if passed else ", and no audit of all its parts has passed"
    return f"warning: --host {host} shows this run to everybody who can reach this machine{found}"


def serve_page(folder: Path, data: str | Path | None, host: str, port: int) -> None:
    """Reads a run and serves its page until it is interrupted.

    Args:
        folder: Folder of the run.
        data: What names the real tiles that classifiers are scored on; None leaves the scores out.
        host, port: The address to listen on.

    Raises:
        InputError: If the run has no distilled set, the real tiles do not suit it, or the address cannot be listened
            on.
    """
    run = show.read_demo_run(folder)
    real = load_real(data, folder, run)
    page = build_page(run, load_finished_pipeline(folder), real)
    if line := warning_line(host, run):
        print(line)
    launch(page, folder, host, port)
    print(f"demo-app: http://{host}:{port} shows the run; Ctrl-C ends it", flush=True)
    page.block_thread()


def launch(page: gr.Blocks, folder: Path, host: str, port: int) -> None:
    """Starts to serve a page, in threads of its own: nothing is shared elsewhere, and no file of the run is served.

    Args:
        page: What `build_page` made.
        folder: Folder of the run, whose files stay here.
        host, port: The address to listen on.

    Raises:
        InputError: If the address cannot be listened on.
    """
    theme = gr.themes.Default(
        primary_hue=gr.themes.colors.fuchsia,
        # Names of installed fonts; gradio's own are fetched from elsewhere.
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    try:
        page.queue(max_size=_LONGEST_QUEUE).launch(
            server_name=host,
            server_port=port,
            share=False,
            ssr_mode=False,
            run_history=False,
            footer_links=[],
            blocked_paths=[str(folder.resolve()), tempfile.gettempdir()],
            app_kwargs={"middleware": [Middleware(_SafeHeaders)]},
            theme=theme,
            css=_CSS,
            prevent_thread_lock=True,
            quiet=True,
        )
    except OSError as error:
        raise InputError(
            f"{param('host')}={host} {param('port')}={port} cannot be listened on: give another port, "
            "or end what uses it"
        ) from error
