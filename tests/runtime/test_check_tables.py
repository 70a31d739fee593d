"""What `check --verbose` says, and that a person can read it at 100 columns."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from small_bundle import DECODER, small_files, small_manifest, write_manifest, write_small_bundle

from drivekd.runtime import CheckReport, check_bundle
from drivekd.runtime.bundle.manifest import Manifest, TensorSpec
from drivekd.runtime.check_tables import Table, accuracy_table, check_tables, kv_bytes_per_1k_tokens, parity_summary, tensor_rows
from drivekd.tables import render_table

ROW = {"capability": "all", "questions": 90, "bundle": 0.8125, "bundle_lower": 0.7, "bundle_upper": 0.9, "difference": -0.0125}


@pytest.fixture
def report(tmp_path: Path) -> CheckReport:
    manifest = dataclasses.replace(small_manifest(small_files()), accuracy=(ROW,), note="a stand-in", source={"kind": "lora"})
    folder = write_small_bundle(tmp_path / "bundle")
    write_manifest(folder, manifest.to_bytes())
    (folder / "engines" / "sm87").mkdir(parents=True)
    return check_bundle(folder, replay=False)


def table(report: CheckReport, title: str) -> Table:
    return next(found for found in check_tables(report, verbose=True) if found[0].startswith(title))


def test_verbose_says_all_that_the_issue_asks_for(report: CheckReport) -> None:
    summary = dict(check_tables(report, verbose=True)[0][2])
    assert summary["made by"] == "drivekd 0 from a lora"
    assert summary["licence"] == "apache-2.0"
    assert summary["note"] == "a stand-in"
    assert summary["signature"].startswith("none")
    assert summary["embedding"] == "8 x 4, fp32"
    assert table(report, "graphs")[2][1] == ["decoder.concat", "fp32", "", "", "", "decoder.data", "18", ""]
    assert ["decoder.data", "160"] in [row[:2] for row in table(report, "files")[2]]
    assert table(report, "accuracy")[2] == [["all", "90", "0.812 [0.700, 0.900]", "-0.013"]]
    assert table(report, "prompts")[2] == [["planning", "At {ego_speed_mps} m/s?"]]


def test_an_engine_that_may_not_run_is_seen_without_verbose(report: CheckReport) -> None:
    for verbose in (False, True):
        assert "sm87 NOT USABLE" in dict(check_tables(report, verbose=verbose)[0][2])["engines"]


def test_without_verbose_there_is_one_table(report: CheckReport) -> None:
    assert len(check_tables(report, verbose=False)) == 1


def test_every_line_fits_in_100_columns(report: CheckReport) -> None:
    for found in check_tables(report, verbose=True):
        assert max(map(len, render_table(*found, width=100).splitlines())) <= 100


def with_kv(dtype: str, layers: int) -> Manifest:
    manifest = small_manifest({})
    inputs = tuple(dataclasses.replace(tensor, dtype=dtype) if "past" in tensor.name else tensor for tensor in DECODER.inputs)
    graphs = {**manifest.graphs, "decoder.concat": dataclasses.replace(DECODER, inputs=inputs)}
    return dataclasses.replace(manifest, graphs=graphs, model=dataclasses.replace(manifest.model, num_layers=layers))


def test_memory_of_k_and_v_per_1000_tokens() -> None:
    assert kv_bytes_per_1k_tokens(with_kv("float32", 1)) == 2 * 1 * 1 * 2 * 4 * 1000
    assert kv_bytes_per_1k_tokens(with_kv("float16", 24)) == 24 * kv_bytes_per_1k_tokens(with_kv("float32", 1)) // 2


def test_k_and_v_of_all_layers_share_a_row() -> None:
    many = tuple(TensorSpec(f"past_key_values.{i}.{part}", "float32", (1,)) for i in range(24) for part in ("key", "value"))
    rows = tensor_rows(dataclasses.replace(DECODER, inputs=many, outputs=()))
    assert rows == [["in", "past_key_values.0 to 23.key and .value", "float32", "[1]"]]


def test_the_worst_row_of_parity_is_named() -> None:
    worst = {"graph": "vision", "case": "2 tiles", "output": "image_embeds", "max_abs": 2.5e-6, "limit": 1e-4, "passed": True}
    manifest = dataclasses.replace(small_manifest({}), parity=(worst, {"passed": True}))
    summary = "2 of 2 rows passed; worst: vision, 2 tiles, image_embeds: error 2.5e-06, limit 1.0e-04"
    assert parity_summary(manifest) == summary
    assert parity_summary(dataclasses.replace(manifest, parity=())) == "no table"


def test_an_accuracy_table_of_any_columns_is_shown() -> None:
    assert accuracy_table([{"a_lower": 1}, {"b": "x"}]) == (["a lower", "b"], [["1", ""], ["", "x"]])
