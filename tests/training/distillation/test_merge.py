from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import ClassLabel, Image, List, Value, load_dataset
from PIL import Image as PILImage
from PIL.PngImagePlugin import PngInfo

from histodistill.hub_cards import DistilledDatasetCardData, render_dataset_card
from histodistill.training.data.image_dataset import read_image_dataset, write_image_dataset
from histodistill.training.data.sources import load_tiles
from histodistill.training.distillation import merge as script
from histodistill.training.distillation import select as select_script
from histodistill.training.distillation.merge import MergeConfig
from histodistill.training.distillation.site_sets import default_names
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_json
from histodistill.training.running.options import run_script
from histodistill.training.running.stages import Stage


NAMES = ["adipose", "glands", "mucus"]
COUNTS = {"north": 2, "south": 3}


def make_site(
    folder,
    n_per_class,
    *,
    names=NAMES,
    size=8,
    source="tiny",
    license=None,
    selector="infomap",
    stage="distilled",
    ranks=True,
):
    """A distilled set as select leaves it, of noise, with 10 images in the pool; the last rank has no community."""
    count = n_per_class * len(names)
    rng = np.random.default_rng(count)
    columns = {
        "label": np.repeat(np.arange(len(names)), n_per_class),
        "soft_label": rng.dirichlet(np.ones(len(names)), count).astype(np.float32),
        "seed": rng.permutation(100)[:count],
        "community": np.where(np.arange(count) % n_per_class == n_per_class - 1, -1, np.arange(count)),
    }
    if ranks:
        columns["rank"] = np.arange(count) % n_per_class + 1
    record = Stage(folder, {"stage": stage, "selector": selector, "embedder": "/home/me/autoencoder"})
    record.begin()
    images = rng.integers(256, size=(count, size, size, 3), dtype=np.uint8)
    features = write_image_dataset(folder / "data", images, columns, names)
    card = DistilledDatasetCardData(
        class_names=names,
        n_per_class=n_per_class,
        image_size=size,
        pool_size=10,
        selector="DistillSelector",
        selector_params={},
        features=features,
        source_name=source,
        license=license,
    )
    (folder / "README.md").write_text(render_dataset_card(card))
    counts = {"community_sizes": {"adipose": [3, 3], "glands": [1]}, "dropped": {"adipose": 2, "glands": 0}}
    record.finish(**counts, copies_dropped={"adipose": 1, "glands": 0})
    return folder


@pytest.fixture
def sites(tmp_path):
    """Two run folders."""
    for name, n_per_class in COUNTS.items():
        make_site(tmp_path / name / "distilled", n_per_class)
    return [tmp_path / name for name in COUNTS]


def card_of(folder):
    return (folder / "README.md").read_text()


def test_all_images_by_class_and_site_in_their_order(sites, tmp_path, run_main):
    run_main(script, *sites, "--output", tmp_path / "merged")
    images, merged, names = read_image_dataset(tmp_path / "merged")
    assert names == NAMES
    assert merged["label"].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert merged["site"].tolist() == [0, 0, 1, 1, 1] * 3
    for number, site in enumerate(sites):
        mine = merged["site"] == number
        site_images, columns, _ = read_image_dataset(site / "distilled")
        np.testing.assert_array_equal(images[mine], site_images)
        for name in ("label", "seed", "soft_label", "rank"):
            np.testing.assert_array_equal(merged[name][mine], columns[name])
    # Communities 0, 2 and 4 of the first site, 0, 1, 3, 4, 6, 7 of the second raised by 5, and none stays none.
    assert merged["community"].tolist() == [0, -1, 5, 6, -1, 2, -1, 8, 9, -1, 4, -1, 11, 12, -1]


def test_ranks_are_left_out_where_an_older_set_has_none(sites, tmp_path, run_main):
    make_site(tmp_path / "old", 2, ranks=False)
    run_main(script, *sites, tmp_path / "old", "--output", tmp_path / "merged")
    _, merged, _ = read_image_dataset(tmp_path / "merged")
    assert "rank" not in merged and len(merged["label"]) == 21
    assert "`rank`" not in card_of(tmp_path / "merged")


def test_classes_are_matched_by_name_and_sites_have_shares(sites, tmp_path, run_main):
    make_site(sites[1] / "distilled", 3, names=["mucin", "adipose", "glands"])
    argv = ["--rename", "south:mucin=mucus", "--shares", "north=2", "south=1", "--output", tmp_path / "merged"]
    run_main(script, *sites, *argv)
    images, merged, names = read_image_dataset(tmp_path / "merged")
    assert names == NAMES and merged["label"].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert merged["site"].tolist() == [0, 0, 1] * 3 and merged["rank"].tolist() == [1, 2, 1] * 3
    site_images, columns, _ = read_image_dataset(sites[1] / "distilled")
    np.testing.assert_array_equal(images[merged["site"] == 1], site_images[[3, 6, 0]])
    np.testing.assert_array_equal(
        merged["soft_label"][merged["site"] == 1], columns["soft_label"][[3, 6, 0]][:, [1, 2, 0]]
    )
    facts = read_json(tmp_path / "merged" / "stage.json")["sites"]
    assert [site["n_per_class"] for site in facts] == [[2, 2, 2], [1, 1, 1]]


def test_soft_labels_of_views_are_left_out(sites, tmp_path, run_main):
    """Two sites have images of the same class and rank, by which views are told."""
    images, columns, _ = read_image_dataset(sites[0] / "distilled")
    columns["soft_label_views"] = np.broadcast_to(np.array([0, 255, 255], np.uint8), (len(images), 2, 3))
    write_image_dataset(sites[0] / "distilled" / "data", images, columns, NAMES)
    run_main(script, *sites, "--output", tmp_path / "merged")
    _, merged, _ = read_image_dataset(tmp_path / "merged")
    assert "soft_label_views" not in merged and "rank" in merged and "soft_label" in merged


def test_result_loads_with_its_columns(sites, tmp_path, run_main):
    run_main(script, *sites, "--output", tmp_path / "merged", "--names", "a: 'b'", "c & d")
    dataset = load_dataset(str(tmp_path / "merged"), split="train")
    assert dict(dataset.features) == {
        "image": Image(),
        "label": ClassLabel(names=NAMES),
        "soft_label": List(Value("float32"), length=3),
        "seed": Value("int64"),
        "community": Value("int64"),
        "rank": Value("int64"),
        "site": ClassLabel(names=["a: 'b'", "c & d"]),
    }
    tiles = load_tiles(tmp_path / "merged", hold_out_validation=False)
    assert tiles.class_names == NAMES and tiles.image_size == 8
    np.testing.assert_array_equal(np.bincount(tiles.split("train").labels), [5, 5, 5])


def test_record_and_card_say_what_came_from_where(sites, tmp_path, run_main):
    make_site(sites[1] / "distilled", 3, source="crc", license="cc-by-4.0", selector="infomap")
    run_main(script, *sites, "--output", tmp_path / "merged")
    record = read_json(tmp_path / "merged" / "stage.json")
    assert (record["complete"], record["num_images"], len(record["sites"])) == (True, 15, 2)
    fingerprints = [read_json(site / "distilled" / "stage.json")["fingerprint"] for site in sites]
    north, south = record["sites"]
    assert (north["name"], north["num_images"], north["n_per_class"]) == ("north", 6, [2, 2, 2])
    assert (south["name"], south["num_images"], south["n_per_class"]) == ("south", 9, [3, 3, 3])
    assert [site["source_name"] for site in record["sites"]] == ["tiny", "crc"]
    assert [site["fingerprint"] for site in record["sites"]] == fingerprints
    assert (north["selector"], north["pool_size"], south["community_offset"]) == ("infomap", 10, 5)

    card = card_of(tmp_path / "merged")
    assert "15 synthetic 8×8 images, 5 of each of 3 classes, joined from 2 sites" in card
    assert f"| north | 6 | 2 | tiny | – | infomap | 10 | – | {fingerprints[0][:12]} |" in card
    assert f"| south | 9 | 3 | crc | – | infomap | 10 | cc-by-4.0 | {fingerprints[1][:12]} |" in card
    assert "The sites state different licences" in card and "license" not in yaml.safe_load(card.split("---\n")[1])
    assert "not tissue" not in card


def test_encoders_of_all_sites_are_named_once(sites, tmp_path, run_main):
    uni = {"use": "selection", "name": "user/uni", "license": "cc-by-nc-nd-4.0"}
    other = {**uni, "use": "soft_labels", "name": "dinov2-0123abcd", "license": None}
    for site, encoders in zip(sites, ([uni], [uni, other]), strict=True):
        path = site / "distilled" / "stage.json"
        write_json(path, {**read_json(path), "encoders": encoders})
    run_main(script, *sites, "--output", tmp_path / "merged")
    north, south = read_json(tmp_path / "merged" / "stage.json")["sites"]
    assert (north["encoders"], south["encoders"]) == ([uni], [uni, other])
    card = card_of(tmp_path / "merged")
    assert card.count("Made with user/uni, which embedded the images for the selection, and whose licence is cc-") == 1
    assert "Made with dinov2-0123abcd, which is in the classifier that gave the soft labels" in card


def test_the_groups_of_a_site_are_told_in_numbers(sites, tmp_path, run_main):
    groups = {
        "kind": "patient", "train": 18, "held_out": 2, "per_class": dict.fromkeys(NAMES, 18), "least_tiles": 15,
        "median_tiles": 15.0, "shared": 0, "made": [],
    }  # fmt: skip
    write_json(sites[0] / "run.json", {"format": 1, "groups": groups})
    run_main(script, *sites, "--output", tmp_path / "merged")
    north, south = read_json(tmp_path / "merged" / "stage.json")["sites"]
    assert (north["groups"], south["groups"]) == (groups, None)
    assert "| north | 6 | 2 | tiny | 18 patients | infomap | 10 |" in card_of(tmp_path / "merged")


@pytest.mark.parametrize("groups", [{"kind": "Mrs Miller"}, ["Mrs Miller"], "Mrs Miller"])
def test_other_words_on_groups_are_refused(sites, tmp_path, run_main, groups):
    write_json(sites[0] / "run.json", {"groups": groups})
    with pytest.raises(InputError, match=r"run.json does not say which groups there are"):
        run_main(script, *sites, "--output", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_licence_that_all_sites_state(sites, tmp_path, run_main):
    for site, n_per_class in zip(sites, (2, 3), strict=True):
        make_site(site / "distilled", n_per_class, license="cc-by-4.0")
    run_main(script, *sites, "--output", tmp_path / "merged")
    assert yaml.safe_load(card_of(tmp_path / "merged").split("---\n")[1])["license"] == "cc-by-4.0"


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        (
            ("phantom", "crc"),
            "(north) were drawn by a program to try histodistill out. **They are not tissue, and no ",
        ),
        (("phantom", "phantom"), "The tiles were drawn by a program to try histodistill out. **They are not tissue"),
    ],
)
def test_phantom_stays_phantom(sites, tmp_path, run_main, sources, words):
    for site, source in zip(sites, sources, strict=True):
        make_site(site / "distilled", 2, source=source)
    # Whatever the title was changed to.
    readme = sites[0] / "distilled" / "README.md"
    readme.write_text(readme.read_text().replace("pretty_name: Distilled phantom", "pretty_name: Our tiles"))
    run_main(script, *sites, "--output", tmp_path / "merged")
    card = card_of(tmp_path / "merged")
    assert words in card
    assert "histopathology" not in yaml.safe_load(card.split("---\n")[1])["tags"]


def test_nothing_that_leaves_the_house_names_a_folder(sites, tmp_path, run_main):
    run_main(script, *sites, "--output", tmp_path / "merged")
    files = [path for path in (tmp_path / "merged").rglob("*") if path.is_file()]
    assert len(files) == 3
    for path in files:
        assert str(tmp_path).encode() not in path.read_bytes() and b"/home/me" not in path.read_bytes()


def with_file_names(table):
    cells = [{**cell, "path": "slide-17.png"} for cell in table["image"].to_pylist()]
    return table.set_column(0, table.schema.field("image"), pa.array(cells, table.schema.field("image").type))


def with_text_in_images(table):
    text, file = PngInfo(), io.BytesIO()
    text.add_text("Comment", "slide 17")
    PILImage.new("RGB", (8, 8)).save(file, "PNG", pnginfo=text)
    cells = [{"bytes": file.getvalue(), "path": None}] * len(table)
    return table.set_column(0, table.schema.field("image"), pa.array(cells, table.schema.field("image").type))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_file_names, "a cell without an image, or with a file name"),
        (with_text_in_images, "the image has a part 'tEXt' that is not pixels"),
        (lambda table: table.append_column("image_2", table["image"]), "it has a column 'image_2'"),
        (lambda table: table.append_column("patient", table["seed"]), "it has a column 'patient'"),
        (lambda table: table.replace_schema_metadata({**table.schema.metadata, "note": "x"}), "has the key b'note'"),
        (lambda table: table.replace_schema_metadata(None), "its footer does not say what its columns are"),
    ],
)
def test_a_site_with_more_than_a_distilled_set_is_refused(sites, tmp_path, run_main, change, message):
    file = sites[1] / "distilled" / "data" / "train-00000-of-00001.parquet"
    pq.write_table(change(pq.read_table(file)), file)
    with pytest.raises(
        InputError, match=rf"south holds no distilled set that can be read \(.*{message}.*\): "
    ) as error:
        run_main(script, *sites, "--output", tmp_path / "merged")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("name", ["site[1]", "a*b", "what?", "x::y", "tiles [20x]"])
def test_a_site_whose_name_looks_like_a_pattern_is_read_itself(tmp_path, run_main, name):
    for folder, n_per_class in (("site1", 3), ("ab", 4), (name, 2)):
        make_site(tmp_path / folder / "distilled", n_per_class)
    run_main(script, tmp_path / "site1", tmp_path / name, "--names", "a", "b", "--output", tmp_path / "merged")
    images, columns, _ = read_image_dataset(tmp_path / "merged")
    assert np.bincount(columns["site"]).tolist() == [9, 6]
    np.testing.assert_array_equal(images[columns["site"] == 1], read_image_dataset(tmp_path / name / "distilled")[0])


@pytest.mark.parametrize("name", ["a\u200b", "a\u202etxt", "a\ufe0f", "x" * 101, "e\u0301"])
def test_names_of_sites_are_plain_text(sites, tmp_path, run_main, name):
    with pytest.raises(InputError, match=r"^names=north .* cannot be published: its site .* give it a plain name"):
        run_main(script, *sites, "--names", "north", name, "--output", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"settings": {"stage": "distilled", "selector": "<img src=x>"}}, "settings.selector"),
        ({"settings": {"stage": ["distilled"]}}, "settings.stage"),
        ({"settings": []}, "settings"),
        ({"fingerprint": "slide 17"}, "fingerprint"),
        ({"community_sizes": [3, 4]}, "community_sizes"),
        ({"community_sizes": {"adipose": [10**40]}}, "community_sizes.adipose.0"),
        ({"dropped": {"adipose": "2"}}, "dropped.adipose"),
        ({"complete": "no"}, "complete"),
    ],
)
def test_records_of_other_sites_are_told_by_their_types(sites, tmp_path, run_main, change, place):
    path = sites[1] / "distilled" / "stage.json"
    write_json(path, {**read_json(path), **change})
    with pytest.raises(InputError, match=rf"stage.json holds what no record does \({place}\): ask for it again"):
        run_main(script, *sites, "--output", tmp_path / "merged")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('pretty_name: "Distilled a\\u200bb"', "names tiles that cannot be named"),
        (f"pretty_name: Distilled {'x' * 101}", "names tiles that cannot be named"),
        ("license: [a, b]", "has a license that is no identifier of one"),
        ("license: 'see [here](https://example.org)'", "has a license that is no identifier of one"),
    ],
)
def test_cards_of_other_sites_are_told_as_plain_text(sites, tmp_path, run_main, line, message):
    (sites[1] / "distilled" / "README.md").write_text(f"---\n{line}\n---\n", encoding="utf-8")
    with pytest.raises(InputError, match=message):
        run_main(script, *sites, "--output", tmp_path / "merged")


def test_communities_beyond_all_numbers_are_one_sentence(sites, tmp_path, run_main):
    images, columns, names = read_image_dataset(sites[0] / "distilled")
    columns["community"][0] = 2**31 - 1
    write_image_dataset(sites[0] / "distilled" / "data", images, columns, names)
    with pytest.raises(InputError, match=r"cannot be written: row .*its column community holds .* out of range"):
        run_main(script, *sites, "--output", tmp_path / "merged")


def test_finished_merge_is_left_alone_and_another_is_refused(sites, tmp_path, run_main, capsys):
    argv = [*sites, "--output", tmp_path / "merged"]
    run_main(script, *argv)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    run_main(script, *argv)
    assert "already finished" in capsys.readouterr().out
    with pytest.raises(
        InputError, match=r"was made with other settings \(names was \[\"north\", \"south\"\] and is now"
    ):
        run_main(script, *argv, "--names", "a", "b")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    # Other images under the same settings of the site.
    make_site(sites[1] / "distilled", 4)
    with pytest.raises(InputError, match=r"was made with other settings \(site_2 was "):
        run_main(script, *argv)


def test_the_same_sites_give_the_same_bytes_and_a_killed_merge_goes_on(sites, tmp_path, run_main):
    run_main(script, *sites, "--output", tmp_path / "a")
    record = read_json(tmp_path / "a" / "stage.json")
    write_json(tmp_path / "b" / "stage.json", {**record, "complete": False})
    for site in sites:  # the same from other folders, given as the sets themselves
        shutil.copytree(site, tmp_path / "elsewhere" / site.name)
    run_main(
        script,
        *(tmp_path / "elsewhere" / site.name / "distilled" for site in sites),
        "--output",
        tmp_path / "b",
    )
    for name in ("README.md", "data/train-00000-of-00001.parquet"):  # and no word of where they were
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert read_json(tmp_path / "b" / "stage.json")["complete"]
    assert {path.name for path in (tmp_path / "b").iterdir()} == {"README.md", "data", "stage.json"}


def test_a_folder_with_somebodys_own_data_is_left_alone(sites, tmp_path, run_main):
    own = tmp_path / "own" / "data" / "raw_tiles.npz"
    own.parent.mkdir(parents=True)
    own.write_text("precious")
    with pytest.raises(InputError, match=r"is not empty and holds no stage of a run \(data\)"):
        run_main(script, *sites, "--output", tmp_path / "own")
    assert own.read_text() == "precious"


def test_a_set_with_neither_record_nor_card(sites, tmp_path, run_main):
    (sites[0] / "distilled" / "stage.json").unlink()
    (sites[0] / "distilled" / "README.md").unlink()
    run_main(script, *sites, "--output", tmp_path / "merged")
    assert "| north | 6 | 2 | – | – | – | – | – | – |" in card_of(tmp_path / "merged")


def test_a_card_that_names_no_source(sites, tmp_path, run_main):
    make_site(sites[0] / "distilled", 2, source=None)
    run_main(script, *sites, "--output", tmp_path / "merged")
    assert read_json(tmp_path / "merged" / "stage.json")["sites"][0]["source_name"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: make_site(f, 3, names=["adipose", "glands", "mucin"]),
            r"^north has no class mucin, but adipose, glands, mucus: give classes that are the same one name by ren",
        ),
        (lambda f: make_site(f, 3, size=12), r"south has images of 12 pixels and .*north of 8: distil all sites with"),
        (
            lambda f: write_image_dataset(
                f / "data", np.zeros((3, 8, 8, 3), np.uint8), {"label": np.arange(3), "seed": np.arange(3)}, NAMES
            ),
            r"south has other columns than .*north \(community, soft_label\): all sites must have the same",
        ),
        (lambda f: make_site(f, 3, stage="pool"), r"south is a pool, no distilled set: give what"),
        (lambda f: Stage(f, {}).begin(), r"south is not finished: run the command"),
        (
            lambda f: shutil.rmtree(f / "data"),
            r"south is no site: give a run folder with distilled/, or a folder with",
        ),
        (
            lambda f: (f / "data" / "train-00000-of-00001.parquet").write_bytes(b"nothing"),
            r"south holds no distilled set that can be read \(it is no Parquet file that can be read",
        ),
        (
            lambda f: (f / "data" / "train-00000-of-00001.parquet").rename(
                f / "data" / "train-00000-of-00002.parquet"
            ),
            r"does not hold the 2 files that it should, one of each number, but 1",
        ),
        (lambda f: (f / "README.md").write_text("---\n[1\n---\n"), r"README.md has a header that is no YAML mapping"),
    ],
)
def test_sites_that_do_not_fit_are_refused_before_anything_is_written(sites, tmp_path, run_main, change, message):
    # A stage refuses to be made again with other settings.
    (sites[1] / "distilled" / "stage.json").unlink()
    change(sites[1] / "distilled")
    with pytest.raises(InputError, match=message) as error:
        run_main(script, *sites, "--output", tmp_path / "merged")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "merged").exists()


def test_a_merged_set_is_no_site(sites, tmp_path, run_main):
    run_main(script, *sites, "--output", tmp_path / "merged")
    with pytest.raises(InputError, match=r"merged has a column site, so it is merged already: name the sites that"):
        run_main(script, sites[0], tmp_path / "merged", "--output", tmp_path / "again")


def test_a_site_is_named_once_and_is_not_the_output(sites, tmp_path, run_main):
    with pytest.raises(InputError, match=r"north is named twice: name each site once"):
        run_main(script, *sites, sites[0] / "distilled", "--output", tmp_path / "merged")
    (sites[0] / "distilled" / "stage.json").unlink()  # which would keep others out
    before = sorted(tmp_path.rglob("*"))
    for output in (sites[0], sites[0] / "distilled"):
        with pytest.raises(InputError, match=r"is one of the sites: give another folder"):
            run_main(script, *sites, "--output", output)
    assert sorted(tmp_path.rglob("*")) == before


def test_names_of_the_folders(tmp_path):
    folders = ["a/distilled", "b/distilled", "c/a", "d/a-2", "e/a/distilled"]
    assert default_names([tmp_path / folder for folder in folders]) == ["a", "b", "a-2", "a-2-2", "a-3"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["a"], "SITE=a is the only one: name at least two sites to merge"),
        (["a", "b", "--names", "x"], "--names=x does not fit 2 sites: give one name for each"),
        (
            ["a", "b", "--names", "x", "x"],
            "--names=x x has a name twice or an empty one: give each site a name of its own",
        ),
        (
            ["a", "b", "--names", "x", " "],
            "--names=x   has a name twice or an empty one: give each site a name of its own",
        ),
    ],
)
def test_bad_options_are_refused_before_anything_is_loaded(argv, message, capsys):
    with pytest.raises(SystemExit) as error:
        run_script(script.make_parser, lambda config: pytest.fail("the step was run"), [*argv, "--output", "o"])
    assert error.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_from_python_it_takes_a_configuration_and_returns_the_folder(sites, tmp_path, capsys):
    config = MergeConfig(sites=[str(site) for site in sites], names=["a", "b"], output=tmp_path / "merged")
    assert script.run(config) == tmp_path / "merged"
    assert read_image_dataset(tmp_path / "merged")[1]["site"].max() == 1
    assert script.run(config) == tmp_path / "merged"
    assert "already finished" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"^sites=a is the only one: name at least two sites to merge$"):
        MergeConfig(sites=["a"], output="o")
    with pytest.raises(InputError, match=r"^names=x does not fit 2 sites: give one name for each$"):
        MergeConfig(sites=["a", "b"], names=["x"], output="o")


def test_names_are_not_left_out(capsys):
    with pytest.raises(SystemExit) as stopped:
        script.make_parser().read(["a", "b", "--output", "o", "--names"])
    assert stopped.value.code == 2
    assert "--names: expected at least one argument" in capsys.readouterr().err


def test_bad_site_ends_with_code_2(tmp_path, capsys):
    argv = [str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path / "merged")]
    with pytest.raises(SystemExit) as error:
        run_script(script.make_parser, script.run, argv)
    assert error.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {tmp_path / 'a'} is no site: ") and captured.err.count("\n") == 1


def test_what_select_leaves_is_a_site(tmp_path, run_main, tiny_pool, tiny_teacher):
    for name, n_per_class in COUNTS.items():
        argv = ["--pool", tiny_pool, "--teacher", tiny_teacher, "--n-per-class", n_per_class]
        run_main(select_script, *argv, "--output", tmp_path / name)
    run_main(script, *(tmp_path / name for name in COUNTS), "--output", tmp_path / "merged")
    record = read_json(tmp_path / "merged" / "stage.json")
    assert json.dumps(record).count("/") == 0
    for site, (name, n_per_class) in zip(record["sites"], COUNTS.items(), strict=True):
        assert (site["name"], site["n_per_class"], site["source_name"]) == (name, [n_per_class] * 5, None)
        assert (site["selector"], site["pool_size"]) == ("kernel_herding", 30)
        assert site["fingerprint"] == read_json(tmp_path / name / "distilled" / "stage.json")["fingerprint"]
    card = card_of(tmp_path / "merged")
    assert "25 synthetic 16×16 images, 5 of each of 5 classes, joined from 2 sites" in card
    assert "modular_centrality" in card and "comparable within a class of one site" in card
    # Communities of two sites are never one.
    _, merged, _ = read_image_dataset(tmp_path / "merged")
    first, second = (set(merged["community"][merged["site"] == number].tolist()) for number in (0, 1))
    assert first and second and not first & second
