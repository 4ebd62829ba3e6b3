"""The cards of pipelines, selectors and metrics, and the published card of a distilled set."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import yaml
from datasets import ClassLabel, Features, Image, List, Value
from huggingface_hub import DatasetCard, ModelCard, SpaceCard
from loopback_hub.card_rules import card_errors, read_header

from histodistill.hub_cards import (
    AuditFacts,
    DistilledDatasetCardData,
    MetricCardData,
    PipelineCardData,
    PrivacyFacts,
    RunFacts,
    SelectorCardData,
    render_dataset_card,
    render_metric_card,
    render_metric_page,
    render_pipeline_card,
    render_selector_card,
)
from histodistill.hub_cards.card_facts import PretrainedFacts


NAMES = ["adipose", "no: 'yes' | <b>"]
REPOS = {"pipeline": "me/toy-ldm", "selector": "me/toy-selector", "dataset": "me/toy-distilled"}


def score(mean, std=None):
    return {"mean": mean, "std": std}


RESULTS = [
    {"row": "real_all", "title": "All real tiles", "architecture": "convnet", "num_train": 1000, "seeds": [0, 1],
     "accuracy": score(0.9, 0.01), "auc": score(0.99, 0.001), "f1": score(0.89, 0.02)},
    {"row": "distilled_joint", "title": "Distilled, joint loss", "architecture": "convnet", "num_train": 6,
     "seeds": [0, 1], "accuracy": score(0.81239, 0.0123), "auc": score(None), "f1": score(0.8, 0.03)},
]  # fmt: skip
BENCHMARK = [
    {"title": "pool images chosen by infomap", "architecture": "convnet", "size": 3, "seeds": [0, 1, 2],
     "steps": "2,000 of 32",
     "accuracy": score(0.7, 0.1), "auc": score(0.8, 0.1), "f1": score(0.6, 0.1),
     "margin": {"mean": 0.02, "low": -0.01, "high": 0.05, "p_value": 0.2}},
    {"title": "all real training tiles", "architecture": "convnet", "size": None, "seeds": [0], "margin": None,
     "steps": "–",
     "accuracy": score(0.9), "auc": score(0.9), "f1": score(0.9)},
]  # fmt: skip


def make_facts(**changes) -> RunFacts:
    values = {
        "repos": REPOS,
        "name": "toy",
        "is_phantom": False,
        "class_names": NAMES,
        "image_size": 8,
        "num_distilled": 6,
        "num_tiles": {"train": 1000, "test": 50},
        "license": "cc-by-4.0",
        "attribution": "Kather *et al.*",
        "results": RESULTS,
        "own_row": "distilled_joint",
        "settings": {"denoiser": {"seed": "0", "learning_rate": "0.001"}},
        "versions": {"torch": "2.13.0"},
    }
    return RunFacts(**(values | changes))


def pipeline_card(**changes) -> str:
    return render_pipeline_card(
        PipelineCardData(
            facts=make_facts(**changes),
            components={"unet": "UNet2DModel", "scheduler": "DPMSolverMultistepScheduler"},
            parameters={"unet": 13146},
            generation={"num_inference_steps": 20, "guidance_interval": [0.3, 0.9]},
            precision="bf16",
            pool_size=2000,
        )
    )


def selector_card(**changes) -> str:
    return render_selector_card(
        SelectorCardData(
            facts=make_facts(**changes),
            selector="DistillSelector",
            params={"n_neighbors": 15},
            arrays={"selected_indices_": "int64, 6"},
            n_per_class=3,
            pool_size=2000,
            community_sizes={"adipose": [700, 300], NAMES[1]: []},
            dropped={"adipose": 4},
        )
    )


def dataset_card(**changes) -> str:
    facts = make_facts(**changes)
    kinds = {"image": Image(), "label": ClassLabel(names=NAMES), "soft_label": List(Value("float32"), length=2)}
    return render_dataset_card(
        DistilledDatasetCardData(
            class_names=NAMES,
            n_per_class=3,
            image_size=8,
            pool_size=2000,
            selector="DistillSelector",
            features=Features(kinds),
            source_name=facts.name,
            license=facts.license,
            attribution=facts.attribution,
            results=facts.results,
            facts=facts,
            has_grid=True,
            has_map=True,
        )
    )


CARDS = {
    "pipeline": (pipeline_card, ModelCard, "model"),
    "selector": (selector_card, ModelCard, "model"),
    "dataset": (dataset_card, DatasetCard, "dataset"),
}
UNMEASURED = {
    "num_tiles": None, "license": None, "attribution": None, "results": [], "own_row": None, "settings": {},
    "versions": {},
}  # fmt: skip


@pytest.mark.parametrize("changes", [{}, UNMEASURED], ids=["full", "bare"])
@pytest.mark.parametrize("kind", CARDS)
def test_header_is_valid(kind, changes):
    make, card_class, repo_type = CARDS[kind]
    text = make(**changes)
    assert card_errors(text, repo_type) == ([], [])
    # The Hub's own classes read it, and lose nothing of it.
    data = card_class(text).data.to_dict()
    assert data == read_header(text)
    assert data.get("license") == changes.get("license", "cc-by-4.0")
    assert "histodistill" in data["tags"]


def test_model_index_is_about_the_real_test_tiles():
    card = ModelCard(pipeline_card(test_tiles="toy: 50 private test tiles"))
    assert read_header(pipeline_card())["model-index"][0]["name"] == "me/toy-ldm"
    found = [(r.metric_type, r.metric_value, r.metric_name) for r in card.data.eval_results]
    # Only what was measured, and only of the distilled set.
    assert found == [
        ("accuracy", 0.8124, "Accuracy, ConvNet, mean over 2 seeds"),
        ("f1", 0.8, "Macro F1, ConvNet, mean over 2 seeds"),
    ]
    for result in card.data.eval_results:
        assert (result.dataset_type, result.dataset_split) == ("private-test-tiles", "test")
        assert result.dataset_name == "toy: 50 private test tiles"
        assert result.task_name == "ConvNet trained on images of this model (Distilled, joint loss)"
        assert result.source_url == "https://huggingface.co/datasets/me/toy-distilled"
    public = ModelCard(pipeline_card(test_tiles="PathMNIST", test_tiles_id="pathmnist"))
    assert {result.dataset_type for result in public.data.eval_results} == {"pathmnist"}
    assert "model-index" not in read_header(pipeline_card(results=[]))
    assert "model-index" not in read_header(pipeline_card(repos={"pipeline": "me/toy-ldm"}))
    assert read_header(selector_card())["datasets"] == ["me/toy-distilled"]


@pytest.mark.parametrize("kind", CARDS)
def test_what_every_card_says(kind):
    text = CARDS[kind][0]()
    assert "Never for diagnosis" in text and "2406.13536" in text
    assert "## Bias, Risks, and Limitations" in text and "### Out-of-Scope Use" in text
    assert "| All real tiles | 1,000 | convnet, 2 seeds | 0.900 ± 0.010 | 0.990 ± 0.001 | 0.890 ± 0.020 |" in text
    assert "| Distilled, joint loss | 6 | convnet, 2 seeds | 0.812 ± 0.012 | – | 0.800 ± 0.030 |" in text
    assert "| denoiser | seed 0, learning_rate 0.001 |" in text and "Made with torch 2.13.0." in text
    assert "Licence: cc-by-4.0." in text and "Kather &#42;et al.&#42;" in text
    assert "no privacy audit has been made" in text
    assert "[histodistill](https://pypi.org/project/histodistill/)" in text
    body = text.split("\n---\n", 1)[1]
    assert "<b>" not in body and "None" not in body and "\n\n\n" not in body
    # Every heading and table stands apart from what is before it, or Markdown does not see it.
    for before, line in pairwise(body.splitlines()):
        assert not line.startswith("#") or before == ""
        if line.startswith("|---"):
            assert before.startswith("| ")
        elif line.startswith("|"):
            assert before == "" or before.startswith("|")


@pytest.mark.parametrize("kind", CARDS)
def test_what_was_not_measured_is_not_made_up(kind):
    text = CARDS[kind][0](**UNMEASURED)
    assert "not measured" in text and "No licence has been stated" in text
    assert not re.search(r"\d\.\d\d\d", text.replace("2406.13536", ""))


@pytest.mark.parametrize("kind", CARDS)
def test_audit_in_words(kind):
    passed = CARDS[kind][0](audit=AuditFacts(passed=True, findings=["✓ 0 of 6 images are copies."]))
    assert "**The privacy audit passed**" in passed and "- ✓ 0 of 6 images are copies.\n" in passed
    assert "no privacy audit has been made" not in passed and "accepted the risk" not in passed
    failed = CARDS[kind][0](
        audit=AuditFacts(passed=False, findings=["✗ 2 of 6 images are copies."]),
        risk="distilled did not pass the privacy audit (2 of *6* images): mend it",
    )
    assert "**The privacy audit did not pass.**" in failed and "- ✗ 2 of 6 images are copies.\n" in failed
    # The first line after the header.
    first = failed.split("\n---\n", 1)[1].lstrip().splitlines()[0]
    assert first.startswith("> **This was published although it did not pass a privacy audit.**")
    assert "accepted the risk" in first and first.endswith("(2 of &#42;6&#42; images).")


def test_controls_that_hold_are_folded_away():
    audit = AuditFacts(passed=True, findings=["✓ 0 of 6 images are copies."], controls=["✓ 100% of *planted* ones."])
    text = dataset_card(audit=audit)
    open_part, folded = text.split("<summary>Would the audit have seen a leak?", 1)
    assert "- ✓ 0 of 6 images are copies.\n" in open_part
    assert "- ✓ 100% of &#42;planted&#42; ones.\n" in folded.split("</details>")[0]


@pytest.mark.parametrize("kind", CARDS)
def test_of_many_rows_of_scores_the_main_ones_are_shown(kind):
    rows = [
        RESULTS[number] | {"architecture": architecture, "row": row, "title": f"title of {row}"}
        for architecture in ("convnet", "resnet18")
        for number, row in ((0, "real_all"), (0, "real_random"), (0, "pool_random"), (1, "distilled_joint"))
    ]
    text = CARDS[kind][0](results=rows)
    shown, folded = text.split("<summary>2 further rows</summary>")
    assert [shown.count(f"| title of {row} |") for row in ("real_all", "real_random", "distilled_joint")] == [2, 2, 2]
    assert "pool_random" not in shown and folded.count("| title of pool_random |") == 2
    few = CARDS[kind][0](results=rows[:4])
    assert "further rows" not in few and "| title of pool_random |" in few


@pytest.mark.parametrize(
    ("std", "words"), [(0.1, "standard deviation over the seeds"), (None, "of one training each (one seed)")]
)
def test_one_seed_is_called_one(std, words):
    assert words in dataset_card(results=[row | {"accuracy": score(0.5, std)} for row in RESULTS])


def test_options_of_the_pipeline_are_those_that_it_is_called_with():
    text = pipeline_card()
    assert '    "num_inference_steps": 20,\n    "guidance_interval": [0.3, 0.9],\n}' in text
    assert "with the options above, in bfloat16 (torch.autocast)." in text and "mixed_precision" not in text


def test_tiles_held_out_are_told():
    tiles = {"train": 1350, "held_out": 150}
    assert "trained on 1,350 labelled tiles (toy), with 150 more held out for the privacy audit" in dataset_card(
        num_tiles=tiles
    )
    assert "(1,350 of them, with 150 more held out for the privacy audit)" in pipeline_card(num_tiles=tiles)
    assert "held out for" not in dataset_card()


def test_benchmark_rows():
    text = pipeline_card(benchmark=BENCHMARK)
    assert (
        "| pool images chosen by infomap | 3 | convnet | 2,000 of 32 | 3 | 0.700 ± 0.100 | 0.800 ± 0.100 "
        "| 0.600 ± 0.100 | +0.020 (-0.010 to +0.050) |\n" in text
    )
    assert "| all real training tiles | all | convnet | – | 1 | 0.900 | 0.900 | 0.900 | – |\n" in text
    assert "but for what a row names and its number of steps, chosen on validation tiles" in text


@pytest.mark.parametrize("kind", CARDS)
def test_drawings_are_not_called_histology(kind):
    text = CARDS[kind][0](name="drawings", is_phantom=True)
    assert "not tissue" in text and "histopathology" not in read_header(text)["tags"]


def test_standing_headings_of_a_dataset_card():
    text = dataset_card()
    for heading in (
        "## Dataset Details", "### Dataset Description", "### Dataset Sources", "## Uses", "### Direct Use",
        "## Dataset Structure", "## Dataset Creation", "### Curation Rationale", "### Source Data",
        "#### Data Collection and Processing", "#### Who are the source data producers?", "### Annotations",
        "#### Annotation process", "#### Who are the annotators?", "#### Personal and Sensitive Information",
        "### Recommendations", "## Citation", "## Dataset Card Contact",
    ):  # fmt: skip
        assert f"\n{heading}\n" in text
    assert "(assets/distilled.png)" in text and "(assets/community_map.png)" in text
    assert 'load_dataset("me/toy-distilled", split="train")' in text
    # What a reader wants first comes first.
    order = ["# Distilled toy", "## How to use it", "## Scores", "## Privacy", "## Dataset Creation", "## Bias, Risks"]
    places = [text.index(f"\n{heading}") for heading in (*order, "## Licence and attribution", "## Citation")]
    assert places == sorted(places)


def test_a_card_of_a_repository_that_has_no_name_is_refused():
    with pytest.raises(ValueError, match="has no 'pipeline'"):
        PipelineCardData(facts=make_facts(repos={}), components={})
    with pytest.raises(ValueError, match="has no 'selector'"):
        SelectorCardData(facts=make_facts(repos={}), selector="", params={}, arrays={}, n_per_class=1)


PRIVACY = PrivacyFacts(epsilon=7.9876, delta=1.72e-5, uncovered=["The soft labels: <b>no</b>."])


@pytest.mark.parametrize(
    ("make", "whose"),
    [
        (pipeline_card, "this model"),
        (dataset_card, "the model that made these images"),
        (selector_card, "the model that made the pool"),
    ],
)
def test_differential_privacy_and_what_it_does_not_cover(make, whose):
    text = make(privacy=PRIVACY)
    assert f"the weights of {whose} were trained with ε = 7.99 and δ = 1.7e-05 for each training tile, the" in text
    assert "\n- The soft labels: &#60;b&#62;no&#60;/b&#62;.\n" in text
    assert "k times as large an ε" in text and "public" not in text.split("Not covered")[0].split("**Differential")[1]
    public = make(privacy=PrivacyFacts(epsilon=1.0, delta=1e-5, public_autoencoder=True))
    assert "ε = 1 and δ = 1e-05 for each training tile. That is the denoiser's; the autoencoder" in public
    assert "states to be public" in public and "together" not in public.split("Not covered")[0].split("**Diff")[1]
    started = make(privacy=PrivacyFacts(epsilon=1.0, delta=1e-5, public_init=True))
    assert "together (the sums of both). The denoiser began from weights of other tiles, which whoever" in started
    assert "Differential privacy" not in make()


@pytest.mark.parametrize("make", [pipeline_card, dataset_card, selector_card])
def test_weights_that_it_began_from_are_told_of(make):
    sentence = "\n\nThe denoiser began from the weights of another trained model. What those tell of the tiles"
    assert sentence in make(warm_start=True) and sentence not in make()


@pytest.mark.parametrize("make", [pipeline_card, dataset_card, selector_card])
def test_an_autoencoder_from_elsewhere_is_told_of(make):
    told = " that was pretrained elsewhere"
    assert told not in make()
    stated = make(pretrained=PretrainedFacts(is_taken=True, name="a/vae <b>", license="mit"))
    assert (
        f"The autoencoder is one{told}: a/vae &#60;b&#62;, under the licence mit, as whoever made this states. What"
    ) in stated
    unknown = make(pretrained=PretrainedFacts(is_taken=False))
    assert f"The autoencoder was trained further from one{told}; its licence has not been stated. What" in unknown


@pytest.mark.parametrize(("epsilon", "delta"), [(0, 1e-5), (-1, 1e-5), (1, 1)])
def test_a_budget_that_bounds_nothing_is_refused(epsilon, delta):
    with pytest.raises(ValueError, match="is out of range: it bounds nothing"):
        PrivacyFacts(epsilon=epsilon, delta=delta)


def make_metric() -> MetricCardData:
    return MetricCardData(
        repo_id="me/f1_macro",
        title="Macro F1",
        description="The mean of <F1>.",
        inputs=[("predictions", "list of int", "predicted classes.")],
        outputs=[("f1_macro", "float", "in [0, 1].")],
        raises=["ValueError: never."],
        call="predictions=[0], references=[0]",
        result="{'f1_macro': 1.0}",
        limits="Every class counts the same.",
        citation="@article{a,\n  title={B}\n}",
    )


def test_metric_card():
    text = render_metric_card(make_metric())
    assert card_errors(text, "space") == ([], [])
    data = SpaceCard(text).data.to_dict()
    assert (data["title"], data["sdk"]) == ("Macro F1", "static") and {"evaluate", "metric"} <= set(data["tags"])
    assert 'evaluate.load("me/f1_macro", module_type="metric")' in text
    assert "[histodistill](https://pypi.org/project/histodistill/)" in text
    assert "- **predictions** (list of int): predicted classes.\n" in text and "- ValueError: never.\n" in text


def test_metric_page_is_escaped_and_loads_nothing():
    page = render_metric_page(make_metric())
    assert "The mean of &lt;F1&gt;." in page
    assert not re.search(r"src=|href=|<script", page)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("model", {"license": "my-licence"}, '"license" must be one of'),
        ("model", {"tags": [1]}, '"tags" must be strings'),
        ("model", {"model-index": [{"name": "x", "results": [{"task": {}}]}]}, "task.type"),
        ("dataset", {"size_categories": ["small"]}, "size_categories"),
        ("dataset", {"task_categories": ["seeing"]}, "task_categories"),
        ("space", {"sdk": "none"}, '"sdk" must be one of'),
    ],
)
def test_the_rules_find_what_is_wrong(kind, change, message):
    text = f"---\n{yaml.safe_dump({'sdk': 'static', **change})}---\n"
    errors, _ = card_errors(text, kind)
    assert any(message in error for error in errors)


def test_a_selector_names_the_encoders_that_it_was_made_with():
    uni = {"use": "embedded the images for the selection", "name": "user/uni", "license": None}
    card = SelectorCardData(
        facts=make_facts(), selector="", params={}, arrays={}, n_per_class=1, has_map=False, encoders=[uni]
    )
    text = " ".join(render_selector_card(card).split())
    assert "Made with user/uni, which embedded the images" in text and "binds these choices is for you" in text
    assert "Made with user" not in selector_card()
