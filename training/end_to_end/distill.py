"""Distils a set of labelled tiles: everything from the raw tiles to the distilled dataset, its scores and a report.

    histodistill distill --data phantom --output runs/phantom --preset cpu-demo

Steps that are finished are skipped, and one that was killed goes on from its last checkpoint: run the same command
again. A preset sets the options of all steps; --set changes single ones, as in --set diffusion.learning_rate=1e-4.
Before it begins, it times a few steps and says how long all of them will take; --time-budget 2h does less of
everything, so that they take no longer.

With --dp-epsilon all that is published is under differential privacy, by patient where tiles have groups: the
autoencoder is made of public tiles, the denoiser is trained with noise, and all that comes after it looks at generated
images alone. What it spends stands in run.json. docs/privacy-audit.md tells what is off then.
The output folder then holds

    run.json  autoencoder/  pipeline/  teacher/  pool/  selector/  distilled/  comparison/  results.json  audit/
    audit.json  report.html
"""

from __future__ import annotations

import functools
import json
import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histodistill.training.distillation.select import SelectConfig
from histodistill.training.end_to_end.measuring import Measured, measure_apart
from histodistill.training.end_to_end.remaining import seconds_left
from histodistill.training.end_to_end.steps import (
    STEPS,
    Budget,
    Common,
    StageCall,
    read_change,
    refuse_given,
    stage_calls,
)
from histodistill.training.evaluation.audit import AUDIT
from histodistill.training.running.claims import LOCK, claiming
from histodistill.training.running.durations import read_duration
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.findings import refuse, warn_of
from histodistill.training.running.formats import RUN_FORMAT, check_format
from histodistill.training.running.launch import NUM_PROCESSES_HELP, run_module
from histodistill.training.running.notes import STEP_OF_DISTILL, hushed, tell, warn
from histodistill.training.running.options import StepParser, check_values, config, like, option, run_script
from histodistill.training.running.precision import has_cuda, resolve_precision
from histodistill.training.running.presets import PRESET_NAMES, Preset, load_preset, preset_name
from histodistill.training.running.program import ANSWER_IS_NO
from histodistill.training.running.progress import about, clock
from histodistill.training.running.source_options import SourceOptions, of_groups, settings_of
from histodistill.training.running.training_options import AUDIT_SHARE_HELP, PrivateTrainingConfig, precision_option


if TYPE_CHECKING:
    from histodistill.training.data.tiles import TileSource
    from histodistill.training.train_autoencoder import TrainAutoencoderConfig
    from histodistill.training.train_diffusion import TrainDiffusionConfig

# What is made of the models, and so can be made anew with other options.
_OF_SELECTION = {
    "selector",
    "distilled",
    "audit",
    "audit.json",
    "comparison",
    "results.json",
    "report.html",
    "benchmark",
}
# Settings that may change, and what must not be there any more when they do: it was made with the old ones.
_AFTER = {
    "generate": {"pool", "evaluation", *_OF_SELECTION},
    "select": _OF_SELECTION,
    "audit": {"audit", "audit.json", "report.html"},
    "compare": {"comparison", "results.json", "report.html"},
    "compare_options": {"comparison", "results.json", "report.html"},
}
# Title of the options of differential privacy.
_PRIVACY = "differential privacy"
#: Tiles that are of nobody: drawings of another seed than those of `phantom`.
PUBLIC_TILES = "phantom:1"
# What `publish` calls the parts of a run.
_KINDS = {"distilled": "dataset", "selector": "selector", "pipeline": "pipeline"}


@config
class DistillConfig(SourceOptions):
    """Options of `distill`."""

    data: str | Path = option("phantom, a MedMNIST name, .npz file, manifest, image or datasets folder, or Hub id")
    output: Path = option("folder of the run", claimed=True)
    preset: str | Path | None = option(
        f"{', '.join(PRESET_NAMES)} or a .toml file; default: gpu where there is one, or cpu", default=None
    )
    set: tuple[str, ...] = option(
        "options of single steps in place of the preset's, several numbers with commas between them, several texts "
        f"with spaces; the steps are {', '.join(STEPS)}",
        default=(),
        metavar="STEP.OPTION=VALUE",
        repeatable=True,
    )
    image_size: int | None = option("side in pixels; default: the size tiles have", default=None)
    n_per_class: int | None = option("images to keep of each class; default: preset", default=None, at_least=1)
    per_class: int | None = option("pool images of each class; default: preset", default=None, at_least=1)
    time_budget: str | None = option(
        "does less of everything, so that the run takes about so long, such as 90m or 1h30m; default: all that the "
        "preset says",
        default=None,
        metavar="TIME",
    )
    exclude: tuple[Path, ...] = like(SelectConfig, "exclude", default=())
    audit_share: float = option(AUDIT_SHARE_HELP, default=0.1, at_least=0, below=1)
    dp_epsilon: float | None = option(
        "makes all that is published with differential privacy, and spends this much on each patient or other group, "
        "or on each tile where nothing is known of groups; needs opacus",
        default=None,
        above=0,
        group=_PRIVACY,
    )
    dp_delta: float | None = like(PrivateTrainingConfig, "dp_delta", default=None, group=_PRIVACY)
    dp_public_data: str | Path = option(
        "public tiles that the autoencoder is made of, which spends nothing: any source",
        default=PUBLIC_TILES,
        group=_PRIVACY,
    )
    # What the selection can take.
    seed: int = option("seed of every step", default=0, at_least=0, below=2**31)
    mixed_precision: str = precision_option()
    num_processes: int = option(NUM_PROCESSES_HELP, default=1, at_least=1)

    def check(self) -> None:
        """Reads the preset, where one is named, and the changes of it."""
        if self.preset is not None:
            load_preset(self.preset)
        _ = self.changes, self.budget_seconds
        self._check_privacy()

    def _check_privacy(self) -> None:
        if self.dp_epsilon is None:
            if self.dp_delta is not None:
                raise InputError(
                    f"{param('dp_delta')} says nothing without {param('dp_epsilon')}: give both or neither"
                )
            return
        if self.time_budget is not None:
            raise InputError(
                f"{param('time_budget')} does not go with {param('dp_epsilon')}, since the budget is planned for a "
                f"number of steps: give that, as in {param('set')} diffusion.max_train_steps=500"
            )
        if str(self.data) == str(self.dp_public_data):
            raise InputError(
                f"{param('dp_public_data')}={self.dp_public_data} are the very tiles that are to be protected: give "
                "others, which are public"
            )

    @property
    def budget_seconds(self) -> int | None:
        """The seconds that `time_budget` says."""
        return None if self.time_budget is None else read_duration("time_budget", self.time_budget)

    @property
    def common(self) -> Common:
        """What all steps are told."""
        return Common(
            self.data,
            self.output,
            self.audit_share,
            self.seed,
            self.mixed_precision,
            self.num_processes,
            self.source_options(),
            None if self.dp_epsilon is None else Budget(self.dp_epsilon, self.dp_delta, self.dp_public_data),
            self.exclude,
        )

    @functools.cached_property
    def changes(self) -> dict[str, dict[str, Any]]:
        """What `set` says: step → option → value, as JSON holds it."""
        changes: dict[str, dict[str, Any]] = {}
        given = self.common.given()
        for text in self.set:
            step, name, value = read_change(text, given)
            if name in changes.setdefault(step, {}):
                raise InputError(f"{param('set')} names {step}.{name} twice: name it once")
            for own, place in (("per_class", "generate"), ("n_per_class", "select")):
                if (step, name) == (place, own) and getattr(self, own) is not None:
                    raise InputError(f"{param('set')} {text} and {param(own)} are the same option: give one of them")
            changes[step][name] = value
        return changes

    @property
    def fixed(self) -> dict[str, list[str]]:
        """Step → the options that `set` or an option of its own name: what is asked for is never fitted."""
        fixed = {step: list(options) for step, options in self.changes.items()}
        if self.per_class is not None:
            fixed.setdefault("generate", []).append("per_class")
        return fixed


def make_parser() -> StepParser[DistillConfig]:
    """The parser of the command line."""
    return StepParser(DistillConfig, prog="histodistill distill", description=__doc__)


@claiming
def run(config: DistillConfig) -> Path:
    """Runs all steps that are not finished, then writes the report and prints a summary and what to do next.

    Standard error has a line of what a new run will need, which is measured, and one for each step: its number, and
    how long all of them have taken and will take.

    What does not pass the audit is a result: the summary then ends with what may not be published, and why.

    Returns:
        The folder of the run.

    Raises:
        InputError: For tiles or options that cannot be used, a folder that holds another run, or a disk or a
            `time_budget` that is too small, or for reviews where there is no set.
        SystemExit: With the exit code of a step that failed, which has said why.
    """
    from histodistill.training.running.stages import read_record

    started = time.monotonic()
    if config.exclude and read_record(config.output / "distilled") is None:
        raise InputError(
            f"{param('exclude')} is about a set that was reviewed, and {config.output} has none yet: distill without "
            "it first"
        )
    # Where steps are timed, models are shown the real tiles, and not within the budget.
    record = open_run(config, measured=measure_apart if config.dp_epsilon is None else None)
    plan = stages(config, record)
    for number, stage in enumerate(plan, start=1):
        finished = [other.folder for other in plan if _is_finished(other, config.output)]
        if stage.folder == "audit" and config.dp_epsilon is not None:
            # Before the audit, which seals it.
            from histodistill.training.evaluation.ledger import write_ledger

            write_ledger(config.output)
        # The selection knows whether it was made without what the reviewers left out.
        if stage.folder in finished and not getattr(stage.config, "exclude", ()):
            tell(f"[{number}/{len(plan)}] {stage.title} · finished before{_duration(config.output / stage.folder)}")
            continue
        times = f"{clock(time.monotonic() - started)} so far"
        left = seconds_left(config.output, plan, record, finished)
        if left is not None:
            times += f", {about(left)} left"
        tell(f"[{number}/{len(plan)}] {stage.title} · {times}")
        try:
            run_module(stage.module, stage.argv, stage.num_processes, STEP_OF_DISTILL)
        except SystemExit as ended:
            # That something does not pass the audit is a result, as any other: the last lines say so.
            if ended.code != ANSWER_IS_NO or not _is_finished(stage, config.output):
                raise

    from histodistill.training.reporting.report_page import write_report
    from histodistill.training.reporting.summary import summary_lines

    write_report(config.output)
    tell(f"all {len(plan)} steps are finished · {clock(time.monotonic() - started)}")
    print("\n".join(summary_lines(config.output)))
    for line in next_lines(config):
        tell(line)
    return config.output


def _duration(folder: Path) -> str:
    """How long a finished step took, in words, where its record tells."""
    from histodistill.training.running.stages import read_record

    record = read_record(folder)
    return f", in {clock(record['seconds'])}" if record else ""


def next_lines(config: DistillConfig) -> list[str]:
    """What can be done with a finished run, as commands that can be copied; what was not audited well has none."""
    from histodistill.training.evaluation.verdicts import read_run_audit

    run, data = shlex.quote(str(config.output)), shlex.quote(str(config.data))
    page = f"histodistill demo-app {run} --data {data}"
    if find_spec("gradio") is None:
        page += "   (needs gradio)"
    audit = read_run_audit(config.output / AUDIT)
    verdicts = audit.parts if audit else {}
    passed = [_KINDS[part] for part, verdict in verdicts.items() if verdict.passed]
    if passed:
        only = "" if len(passed) == len(verdicts) else f" --only {' '.join(passed)}"
        publish = f"histodistill publish {run} --namespace YOU{only}   (shows what would go up; --push does it)"
    else:
        publish = "not as it is, since nothing of it passed the privacy audit"
    lines = [f"Look and try:  {page}", f"Publish:       {publish}"]
    of_pipeline = verdicts.get("pipeline")
    if of_pipeline and {finding.name for finding in of_pipeline.findings if not finding.passed} == {"weights"}:
        lines.append(f"Weights:       {_remedy_of_weights(config.output)}")
    return lines


def _remedy_of_weights(run: Path) -> str:
    """What to do where a pipeline fails its audit by its weights alone, which have seen each tile too often."""
    from histodistill.training.running.stages import read_record

    record = read_record(run / "pipeline") or {}
    steps = record.get("settings", {}).get("max_train_steps", 2)
    return (
        "one who holds them may know training tiles, and not by the images: publish the set without the pipeline, or "
        f"distill into another folder with half of the steps, --set diffusion.max_train_steps={max(1, steps // 2)}"
    )


def _is_finished(stage: StageCall, run: Path) -> bool:
    """Whether a step of a run has nothing left to do."""
    from histodistill.training.evaluation.verdicts import is_about_records
    from histodistill.training.running.stages import is_complete

    if not is_complete(run / stage.folder) or not all((run / name).is_file() for name in stage.also_leaves):
        return False
    # An audit also seals the scores, which may be newer than it is.
    return AUDIT not in stage.also_leaves or is_about_records(run / AUDIT, run)


def resolve_preset(config: DistillConfig) -> Preset:
    """The preset with the configuration's own choices put in, but for what depends on the tiles.

    Raises:
        InputError: If it names options that a step does not take, there are not enough images to keep so many, since
            some are dropped as copies, or more images than the selector takes.
    """
    where = config.preset or default_preset()
    preset = load_preset(where)
    if config.dp_epsilon is not None:
        preset = preset.under_privacy()
    given = config.common.given()
    for step in STEPS:
        try:
            refuse_given(preset.options(step), given[step])
            check_values(STEPS[step], preset.options(step))
        except InputError as error:
            raise InputError(f"{where}, section [{step}]: {error}") from error
    if config.per_class is not None:
        preset = preset.with_options("generate", {"per_class": config.per_class})
    if config.n_per_class is not None:
        preset = preset.with_options("select", {"n_per_class": config.n_per_class})
    preset = with_changes(preset, config, ("generate", "select"))
    _require_enough_images(preset)
    return preset


def _require_enough_images(preset: Preset) -> None:
    """Sees that a pool has enough images to keep so many of, and no more than the selection takes."""
    from histodistill.selection.checks import LARGEST_DISTANCE_MATRIX

    per_class, n_per_class = preset.generate["per_class"], preset.select["n_per_class"]
    # Images that are copies of real tiles are dropped: too few would be left, and hours later.
    if n_per_class > 0.9 * per_class:
        raise InputError(
            f"{param('n_per_class')}={n_per_class} is more than nine tenths of the {per_class} pool images of a "
            f"class, and copies are dropped: raise {param('per_class')} or lower {param('n_per_class')}"
        )
    most = math.isqrt(LARGEST_DISTANCE_MATRIX)
    if preset.select.get("selector") == "facility_location" and per_class > most:
        raise InputError(
            f"{param('per_class')}={per_class} is more than the selector facility_location can compare: it must be at "
            f"most {most}"
        )


def default_preset() -> str:
    """The preset that suits this machine."""
    return "gpu" if has_cuda() else "cpu"


def with_changes(preset: Preset, config: DistillConfig, steps: Sequence[str]) -> Preset:
    """The preset with what `set` says of some steps."""
    return preset.with_changes({step: config.changes[step] for step in steps if step in config.changes})


def fit_preset(preset: Preset, config: DistillConfig, image_size: int, num_train: int) -> Preset:
    """What `resolve_preset` gave, made to fit so many training tiles of that size in pixels."""
    return with_changes(preset.for_tiles(image_size, num_train), config, list(STEPS))


def _require_gpu_for_fp16(precision: str) -> None:
    """Says at once what the first step would say, too, but with the folder claimed for fp16."""
    if precision == "fp16":
        import torch

        if not torch.accelerator.is_available():
            raise InputError(f"{param('mixed_precision')}=fp16 needs a GPU: give bf16 or no")


def open_run(
    config: DistillConfig,
    max_train_steps: Mapping[str, int] | None = None,
    measured: Callable[[Sequence[StageCall]], Measured | str] | None = None,
) -> dict[str, Any]:
    """Checks the data and all options, and claims the output folder for them; returns what run.json holds.

    Nothing is written before everything is known to be right.

    Args:
        config: The options.
        max_train_steps: Optimizer steps of the steps that are named here, in place of the preset's.
        measured: Measures what the steps of a new run cost, or says why it cannot: `measure_apart`. Without it there
            is no estimate, and a `time_budget` goes by rough costs.

    Raises:
        InputError: For data or options that cannot be used, a folder that holds another run, or a disk or a
            `time_budget` that is too small.
    """
    from histodistill.training.data.sources import check_source, load_tiles

    # First what takes no time to see.
    check_source(config.data, config.labels)
    _require_place(config.output)
    _require_gpu_for_fp16(config.mixed_precision)
    preset = resolve_preset(config)
    options = config.source_options()

    from histodistill.training.data.audit_tiles import real_tiles
    from histodistill.training.data.group_record import write_group_record
    from histodistill.training.data.grouping import Grouping
    from histodistill.training.end_to_end.estimate import anew
    from histodistill.training.end_to_end.tile_checks import (
        check_image_size,
        list_source,
        look_at_tiles,
    )

    # Then what takes seconds, before tiles are decoded.
    with hushed():  # of what loading the tiles tells
        listing = list_source(config.data, config.image_size, options)
    grouping = Grouping.of(**of_groups(options))
    loading, beyond, _ = look_at_tiles(
        listing, grouping, config.image_size, config.audit_share, preset, changes=config.changes
    )
    refuse([*loading, *beyond])
    source = load_tiles(config.data, image_size=config.image_size, audit_share=config.audit_share, **options)
    check_image_size(preset, source.image_size, config.changes, len(source.split("train")))
    real_tiles(source)
    source.split("test")
    preset = fit_preset(preset, config, source.image_size, len(source.split("train")))
    for step, number in (max_train_steps or {}).items():
        preset = preset.with_options(step, {"max_train_steps": number})
    for step in STEPS:  # run.json holds what was used, not "auto"
        if precision := preset.options(step).get("mixed_precision"):
            preset = preset.with_options(step, {"mixed_precision": resolve_precision(precision)})
    known = _read_known(config.output)
    fitted = {} if known is None else known.get("fitted", {})
    as_fitted = _with_fitted(preset, fitted, config)
    _require_enough_images(as_fitted)  # the time that the run was fitted to may have left fewer
    run = _record_of(config, as_fitted, source)
    plan = stages(config, run)
    _refuse_what_steps_refuse(plan, source.image_size)
    if config.dp_epsilon is not None:
        _require_budget(next(stage for stage in plan if stage.folder == "pipeline"), source)
    if known is None:
        run = _look_ahead(config, preset, source, run, measured)
    else:
        if "fitted" in known:
            run["fitted"] = known["fitted"]
        if "estimate" in known:
            run["estimate"] = anew(known["estimate"], stages(config, run), run)
    _claim(config.output, run)
    write_group_record(config.output, source)
    warn_of(beyond)  # of the others, loading the tiles has warned
    return run


def _record_of(config: DistillConfig, preset: Preset, source: TileSource) -> dict[str, Any]:
    """What run.json holds of a run with a preset that is fitted to its tiles."""
    from histodistill.training.data.group_facts import group_facts

    settings = {
        **preset.settings(),
        "seed": config.seed,
        "image_size": source.image_size,
        "mixed_precision": config.mixed_precision,
        "fingerprint": source.fingerprint(),
    }
    if config.audit_share:
        settings["audit_share"] = config.audit_share
    if config.budget_seconds is not None:
        settings["time_budget"] = config.budget_seconds
    if config.dp_epsilon is not None:
        private = {"epsilon": config.dp_epsilon, "delta": config.dp_delta, "public_data": str(config.dp_public_data)}
        settings["differential_privacy"] = private
    settings |= settings_of(config.source_options())
    return {
        "format": RUN_FORMAT,
        "data": source.name,
        "preset": preset_name(config.preset or default_preset()),
        **({"set": list(config.set)} if config.set else {}),
        "class_names": source.class_names,
        "num_tiles": {name: len(tiles) for name, tiles in source.splits.items()},
        **({"groups": groups_told} if (groups_told := group_facts(source)) else {}),
        "image_size": source.image_size,
        "seed": config.seed,
        # As it comes back from the file.
        "settings": json.loads(json.dumps(settings)),
    }


def _with_fitted(preset: Preset, fitted: Mapping[str, Mapping[str, Any]], config: DistillConfig) -> Preset:
    """The preset with what was fitted to a time when the run began, but for what is asked for now."""
    fixed = config.fixed
    return preset.with_changes(
        {
            step: {name: value for name, value in options.items() if name not in fixed.get(step, ())}
            for step, options in fitted.items()
        }
    )


def _look_ahead(
    config: DistillConfig,
    preset: Preset,
    source: TileSource,
    run: dict[str, Any],
    measured: Callable[[Sequence[StageCall]], Measured | str] | None,
) -> dict[str, Any]:
    """What run.json holds of a new run, once its steps are fitted to the time, and it is known what they will need.

    Args:
        config: The options.
        preset: Fitted to the tiles.
        source: These tiles.
        run: What run.json holds so far.
        measured: See `open_run`.

    Raises:
        InputError: If the time or the disk is too small.
    """
    from histodistill.training.data.tile_cache import TileCache
    from histodistill.training.end_to_end.budget import fit
    from histodistill.training.end_to_end.estimate import Estimate, check_room
    from histodistill.training.end_to_end.rough_cost import costs

    plan = stages(config, run)
    if measured is not None:
        tell("a few steps are timed, to tell how long all will take")
    found = None if measured is None else measured(plan)
    if isinstance(found, str):
        warn(f"what the steps take could not be measured, so it is only roughly known: {found}")
        found = None
    known, shared, shape = None, True, {}
    if found is not None:
        known, shared = found.unit_seconds, found.device_memory is not None
        shape = {"latent_shape": found.latent_shape}

    def cost(preset: Preset) -> Mapping[str, float]:
        run = _record_of(config, preset, source) | shape
        return costs(stages(config, run), run, known, shared=shared)

    if config.budget_seconds is not None:
        fitted = fit(preset, config.budget_seconds, cost, config.fixed)
        tell(fitted.line(config.budget_seconds))
        run = _record_of(config, _with_fitted(preset, fitted.changes, config), source) | {"fitted": fitted.changes}
        plan = stages(config, run)
    if found is not None:
        estimate = Estimate.of(plan, run, found)
        for line in estimate.lines({stage.folder: stage.title for stage in plan}):
            tell(line)
        if shortage := check_room(estimate, config.output, TileCache(config.cache_dir).folder):
            warn(shortage)
        run["estimate"] = estimate.to_json()
    return run


def _read_known(output: Path) -> dict[str, Any] | None:
    """What run.json of a run that was begun holds; None for a new one. One that is damaged is refused later."""
    from histodistill.training.running.files import read_json

    try:
        known = read_json(output / "run.json")
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _refuse_what_steps_refuse(plan: list[StageCall], image_size: int) -> None:
    """Says at once what a step would say when its turn has come, hours later."""
    from histodistill.training.distillation.pool_selection import make_selector
    from histodistill.training.distillation.selector_options import SelectorConfig
    from histodistill.training.running.stages import is_complete
    from histodistill.training.train_autoencoder import TrainAutoencoderConfig
    from histodistill.training.train_diffusion import TrainDiffusionConfig

    configs = {stage.folder: stage.config for stage in plan}
    denoiser: Any = configs["pipeline"]
    if denoiser.dp_epsilon is not None:
        _require_blind(configs["teacher"], configs["distilled"])
    _require_maps(denoiser, configs["teacher"])
    for stage in plan:
        _require_gpu_for_fp16(getattr(stage.config, "mixed_precision", "no"))
        if isinstance(stage.config, SelectorConfig):
            make_selector(stage.config)
        if isinstance(stage.config, TrainDiffusionConfig) and not is_complete(stage.config.output):
            _require_start(stage.config)
        if isinstance(stage.config, TrainAutoencoderConfig) and not is_complete(stage.config.output):
            _require_autoencoder(stage.config, denoiser.channels, image_size)


def _require_budget(denoiser: StageCall, source: TileSource) -> None:
    """Sees that the denoiser can be trained within its budget, and tells what that means, where it is not trained yet.

    Raises:
        InputError: As for `plan_privacy`.
    """
    from histodistill.training.engine.privacy import plan_privacy
    from histodistill.training.running.stages import is_complete

    config: Any = denoiser.config
    if not is_complete(config.output):
        plan_privacy(config, source, denoiser.num_processes, config.dp_central_share)


def _require_blind(teacher: Any, select: Any) -> None:
    """Sees that under differential privacy nothing comes in from elsewhere, which may know the real tiles."""
    from histodistill.training.models.architectures import ARCHITECTURES
    from histodistill.training.models.encoder_names import BUILT_IN

    for step, name, value, known in (
        ("teacher", "architecture", teacher.architecture, ARCHITECTURES),
        ("select", "embedder", select.embedder, BUILT_IN),
    ):
        if value not in known:
            raise InputError(
                f"{step}.{name}={value} is out of range: with {param('dp_epsilon')} it must be one of "
                f"{', '.join(known)}, which bring nothing of real tiles along"
            )


def _require_maps(denoiser: Any, teacher: Any) -> None:
    """Sees that a denoiser which is aligned with the teacher can be."""
    from histodistill.training.models.architectures import WITH_MAPS

    if denoiser.align is not None and teacher.architecture not in WITH_MAPS:
        raise InputError(
            f"teacher.architecture={teacher.architecture} has no maps of features, which the denoiser is aligned "
            f"with: give {param('set')} diffusion.align_weight=0, or one of {' and '.join(WITH_MAPS)}"
        )


def _require_autoencoder(config: TrainAutoencoderConfig, channels: Sequence[int], image_size: int) -> None:
    """Sees that an autoencoder from elsewhere is there, or can be fetched, and fits the tiles and the denoiser."""
    if config.origin is None:
        return
    from histodistill.training.models.denoiser import check_halvings
    from histodistill.training.models.latents import shape_of_latent
    from histodistill.training.models.named_autoencoders import check_fits, load_pretrained

    autoencoder = load_pretrained(config.origin, config.origin_option)
    if config.autoencoder is not None:
        check_fits(autoencoder, image_size)
        check_halvings(shape_of_latent(autoencoder, image_size)[1], channels)


def _require_start(config: TrainDiffusionConfig) -> None:
    """Sees that a pipeline to begin from is there, or can be fetched, and gives what the denoiser is to give."""
    if config.init_from is not None:
        from histodistill.training.models.warm_start import Start

        start = Start.find(config.init_from)
        start.fingerprint()
        start.require_output(config.denoiser_output)


def _require_place(output: Path) -> None:
    """Sees that a folder holds a run, or is new and can be written.

    Raises:
        InputError: If it is neither.
    """
    from histodistill.training.running.files import write_refusal

    if (output / "run.json").is_file():
        return
    if output.exists() and (not output.is_dir() or any(entry.name != LOCK for entry in output.iterdir())):
        raise InputError(f"{param('output')}={output} is not a run and not empty: give a new folder")
    if refusal := write_refusal(output):
        raise InputError(f"{param('output')}={output} cannot be written ({refusal.strerror}): give another")


def _claim(output: Path, run: dict[str, Any]) -> None:
    """Writes run.json, where the folder is new, or holds this run.

    Raises:
        InputError: If it holds another run or something else, or cannot be written.
    """
    from histodistill.training.running.files import write_json

    file = output / "run.json"
    if file.is_file():
        if _changed_settings(output, run["settings"]):
            write_json(file, run)
        return
    _require_place(output)
    try:
        write_json(file, run)
    except OSError as error:
        raise InputError(f"{param('output')}={output} cannot be written ({error.strerror}): give another") from error


def _changed_settings(output: Path, settings: dict[str, Any]) -> list[str]:
    """The settings in which a run that is there differs, where what was made with them is not there any more.

    Raises:
        InputError: If it is there, or the record is damaged.
    """
    from histodistill.training.running.files import read_json

    file = output / "run.json"
    try:
        record = read_json(file)
        old = record["settings"]
        changed = [name for name in settings | old if old.get(name) != settings.get(name)]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is not a run's record or is damaged: give another {param('output')}") from error
    check_format(record, file, RUN_FORMAT)
    names = ", ".join("the tiles" if name == "fingerprint" else name for name in changed)
    refusal = f"{output} holds a run with other settings ({names}): give another {param('output')}"
    if not set(changed) <= _AFTER.keys():
        raise InputError(refusal)
    later = set().union(*(_AFTER[name] for name in changed))
    if made := sorted(name for name in later if (output / name).exists()):
        raise InputError(f"{refusal}, or move {', '.join(made)} away to make them anew from the models that are there")
    return changed


def stages(config: DistillConfig, run: Mapping[str, Any]) -> list[StageCall]:
    """Every step, in order, of a run whose run.json holds `run`; see `stage_calls`."""
    return stage_calls(config.common, run)


if __name__ == "__main__":
    run_script(make_parser, run)
