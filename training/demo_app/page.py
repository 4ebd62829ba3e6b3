"""The demo page: what `histodistill demo-app` serves.

Needs gradio, which is an extra: only `serve` imports this module, and after it has seen to that.
"""

from __future__ import annotations

import ipaddress
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
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
from histodistill.training.models.devices import best_device
from histodistill.training.models.loading import load_pipeline
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.source_options import source_options_of_run
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

# The colour of histodistill, from light to dark.
_PLUM = gr.themes.colors.Color(
    name="plum",
    c50="#fcf4f9",
    c100="#f7e6f0",
    c200="#efcde1",
    c300="#e3abcd",
    c400="#d98bbd",
    c500="#b45a97",
    c600="#8e3b73",
    c700="#742e5d",
    c800="#5c254a",
    c900="#471d39",
    c950="#2b1022",
)


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
    with gr.Blocks(analytics_enabled=False, title=f"{run.name}, distilled – histodistill") as page:
        gr.HTML(show.intro_html(run))
        with gr.Tabs(overflow_behavior="wrap"):
            with gr.Tab("Overview"):
                gr.HTML(show.overview_html(run))
            with gr.Tab("Browse"):
                _browse_tab(run, quick)
            with gr.Tab("Generate"):
                _generate_tab(run, pipeline, busy)
            with gr.Tab("Train"):
                _train_tab(run, real, busy, quick)
            with gr.Tab("Scores"):
                gr.HTML(show.scores_html(run))
            with gr.Tab("Audit"):
                gr.HTML(show.audit_html(run))
    return page


def _generate_tab(run: show.DemoRun, pipeline: DiffusionPipeline | None, busy: dict[str, Any]) -> None:
    """Images of a class and of seeds that one types in."""
    if pipeline is None:
        gr.Markdown("This run has no pipeline, so there is nothing to generate from.")
        return
    gr.Markdown(
        "Each seed gives one image of a class, always the same. The seeds below Browse's images make these again; "
        "all others make new ones."
    )
    first = int(run.columns["seed"][0]) if "seed" in run.columns else 0
    with gr.Row():
        label = gr.Dropdown(_classes(run), value=int(run.labels[0]), label="Class", min_width=200)
        seed = gr.Number(first, label="First seed", min_width=140)
        count = gr.Slider(1, MOST_IMAGES, 6, step=1, label="Images", min_width=200, elem_id="count")
    button = gr.Button("Generate", variant="primary", elem_id="generate")
    images = gr.HTML(show.example_html(run), min_height=180)

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
        choices = [(RECIPES[name][0], name) for name in names]
        recipe = gr.Radio(choices, value=names[0], label="Learns from", elem_id="recipe")
        steps = gr.Slider(20, 1000, 200, step=20, label="Steps", min_width=200, elem_id="steps")
    button = gr.Button("Train a classifier", variant="primary", elem_id="train")
    stop = gr.Button("Stop", elem_id="stop", visible=False)
    text = gr.Markdown("", elem_id="progress")
    look = {"x": "step", "height": 240, "min_width": 280, "buttons": [], "visible": False}
    with gr.Row():
        loss = gr.LinePlot(y="loss", title="Loss", **look)
        accuracy = gr.LinePlot(y="ACC", title="ACC on real validation tiles", y_lim=[0, 1], **look)

    def wait() -> tuple[str, gr.Button, gr.Button]:
        return "Waiting for its turn: one computation runs at a time.", *buttons(training=True)

    def buttons(training: bool) -> tuple[gr.Button, gr.Button]:
        return gr.Button(visible=not training), gr.Button(visible=training)

    def plot(history: list[dict[str, Any]], key: str, name: str, steps: int) -> gr.LinePlot:
        points = [(record["step"], record[key]) for record in history if key in record]
        # With a single point there is no line to draw.
        return gr.LinePlot(pd.DataFrame(points, columns=["step", name]), x_lim=[0, steps], visible=len(points) > 1)

    def train(recipe: str, steps: int) -> Iterator[tuple[Any, ...]]:
        # After Stop, a reload or a closed tab gradio closes this iterator as soon as it yields, and the training ends.
        drawn = -1
        try:
            for progress in train_live(run, real, recipe, int(steps)):
                plots = (gr.skip(), gr.skip())
                if drawn != len(progress.history):
                    drawn = len(progress.history)
                    plots = (
                        plot(progress.history, "loss", "loss", int(steps)),
                        plot(progress.history, "validation_accuracy", "ACC", int(steps)),
                    )
                yield progress_text(progress), *plots
        except InputError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error

    waiting = button.click(wait, None, [text, button, stop], **quick)
    training = waiting.then(train, [recipe, steps], [text, loss, accuracy], show_progress="hidden", **busy)
    training.then(lambda: buttons(training=False), None, [button, stop], **quick)
    stop.click(lambda: ("Stopped.", *buttons(training=False)), None, [text, button, stop], cancels=[training], **quick)


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
    return pipeline.to(best_device())


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
    real = load_tiles(data, image_size=run.images.shape[1], **source_options_of_run(folder))
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


def make_theme() -> gr.themes.Base:
    """Colours and fonts of the page: every text is at least 4.5 times as bright as its background, or the reverse."""
    theme = gr.themes.Default(
        primary_hue=_PLUM,
        # Names of installed fonts; gradio's own are fetched from elsewhere.
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return theme.set(
        # In dark mode page.css has lighter ones of these two.
        color_accent="*primary_600",
        slider_color="*primary_600",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        input_placeholder_color="*neutral_600",
        input_placeholder_color_dark="*neutral_400",
    )


def launch(page: gr.Blocks, folder: Path, host: str, port: int) -> None:
    """Starts to serve a page, in threads of its own: nothing is shared elsewhere, and no file of the run is served.

    Args:
        page: What `build_page` made.
        folder: Folder of the run, whose files stay here.
        host, port: The address to listen on.

    Raises:
        InputError: If the address cannot be listened on.
    """
    looks = resources.files("histodistill.training.demo_app")
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
            theme=make_theme(),
            css=looks.joinpath("page.css").read_text(encoding="utf-8"),
            favicon_path=str(looks.joinpath("favicon.svg")),
            prevent_thread_lock=True,
            quiet=True,
        )
    except OSError as error:
        raise InputError(
            f"{param('host')}={host} {param('port')}={port} cannot be listened on: give another port, "
            "or end what uses it"
        ) from error
