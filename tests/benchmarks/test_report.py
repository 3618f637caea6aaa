"""The page of benchmarks: written from the committed tables alone."""

import csv

import pytest
import report
from measure import FIELDS

COMMON = dict(device="A card", torch="2.13.0", commit="1234567", date="2026-01-01")
ROW = dict.fromkeys(FIELDS, "") | dict(
    **COMMON,
    benchmark="backbones",
    case="T 1x100x100",
    measured="forward",
    dtype="float16",
    implementation="FlashInternImage",
    milliseconds="10",
    spread_percent="3.2",
    images_per_second="100",
    paper="48",
    reason="",
)
SWIN = ROW | dict(implementation="Swin", milliseconds="15", images_per_second="66.67", paper="50")


def write(folder, *rows, name="a-card_backbones.csv"):
    with open(folder / name, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def page(folder):
    return report.page_of(folder, folder / "page.md")


def test_the_page_is_that_of_the_committed_tables():
    """If this fails: python benchmarks/report.py"""
    assert report.page_of(report.RESULTS, report.PAGE) == report.PAGE.read_text()


def test_ratios_stand_beside_the_papers(tmp_path):
    write(tmp_path, SWIN, ROW)
    text = page(tmp_path)
    assert "## A card" in text
    assert "| images/s | FlashInternImage | Swin |" in text
    # The paper's Swin is faster.
    assert "| T 1x100x100 | 100 | 66.67 (1.50x, paper 0.96x) |" in text
    assert "Quartiles at most 3 % of the median apart." in text


def test_what_is_missing_has_its_reason(tmp_path):
    missing = ROW | dict(
        implementation="ConvNeXt", milliseconds="", reason="mmpretrain is not installed"
    )
    write(tmp_path, missing, ROW)
    text = page(tmp_path)
    assert "| T 1x100x100 | 100 | n/a |" in text
    assert "n/a: ConvNeXt: mmpretrain is not installed." in text


def test_memory_has_a_table_of_its_own(tmp_path):
    step = ROW | dict(benchmark="training", measured="memory of a step", milliseconds="")
    step |= dict(spread_percent="", images_per_second="", paper="")
    write(
        tmp_path, step | dict(mebibytes="200"), step | dict(mebibytes="300", implementation="Swin")
    )
    assert "| MiB | FlashInternImage | Swin |" in page(tmp_path)
    assert "| T 1x100x100 | 200 | 300 (1.50x) |" in page(tmp_path)


def test_times_are_fitted(tmp_path):
    rows = [
        ROW | dict(benchmark="scaling", case=f"T {n}x1000x1000", milliseconds=str(5 + 20 * n))
        for n in (1, 2, 4)
    ]
    write(tmp_path, *rows)
    assert "- FlashInternImage, float16: 5 ms + 20 ms per megapixel; off by up to 0 %." in (
        page(tmp_path)
    )


def test_processes_are_compared_with_one_and_the_all_reduce(tmp_path):
    def row(measured, count, milliseconds):
        return ROW | dict(
            benchmark="processes",
            measured=measured,
            case=f"T 1x32x32 on {count}",
            milliseconds=str(milliseconds),
            images_per_second=str(1000 * count / milliseconds),
        )

    reductions = row("all-reduce", 1, 1), row("all-reduce", 2, 30)
    write(tmp_path, row("training step", 1, 100), row("training step", 2, 125), *reductions)
    assert (
        "- FlashInternImage, T 1x32x32 on 2: 1.60x the images of one process; a single one's step "
        "and the all-reduce one after the other would take 130 ms."
    ) in page(tmp_path)


def test_accuracies_are_means_with_their_range(tmp_path):
    rows = [
        ROW
        | dict(
            benchmark="convergence",
            implementation=name,
            case=f"seed {seed} epoch {epoch}",
        )
        | dict(accuracy=str(base + 10 * epoch + seed), parameters_millions="1.5")
        for name, base in (("DCNv4", 20), ("Convolution", 0))
        for seed in (0, 3)
        for epoch in (1, 2, 3)
    ]
    write(tmp_path, *rows)
    text = page(tmp_path)
    assert "| DCNv4 | 1.5 | 31.5 (30.0 to 33.0) | 41.5 (40.0 to 43.0) | 51.5 (50.0 to 53.0) |" in (
        text
    )
    assert "| Convolution | 1.5 | 11.5 (10.0 to 13.0) |" in text
    assert "| ms |" not in text


def test_kernels_of_no_commit_are_not_reported(tmp_path):
    write(tmp_path, ROW | dict(commit="1234567+changes"))
    with pytest.raises(SystemExit, match=r"measured with code of no commit \(1234567\+changes\)"):
        page(tmp_path)


@pytest.mark.parametrize("error", ["0.02", "nan"])
def test_wrong_results_are_not_reported(error, tmp_path):
    row = ROW | dict(benchmark="dcnv4_modes", implementation="dcnv4, fast")
    write(tmp_path, row | dict(relative_error="0.0004"))
    assert "| T 1x100x100 | 10 |" in page(tmp_path)
    write(tmp_path, row | dict(relative_error=error))
    with pytest.raises(SystemExit, match=f"wrong by {error}, expected at most 0.01"):
        page(tmp_path)
