"""What is written is what the table says: CSV by pandas' own reader, LaTeX by its own rules."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import workbench as wb
from tests.export.hostile import NAMES, retained
from workbench.errors import visible
from workbench.results.run_folder import load

KEPT = Path(__file__).parents[2] / "figures" / "family"


@pytest.fixture(scope="module")
def family() -> dict[str, wb.Result]:
    return load(KEPT)


def require_read_back(table: pd.DataFrame, file: Path) -> None:
    # Text such as "NA" is text; what is missing is empty.
    numbers = [name for name in table if pd.api.types.is_numeric_dtype(table[name])]
    found = pd.read_csv(
        file, float_precision="round_trip", keep_default_na=False,
        na_values={name: [""] for name in numbers},
    )  # fmt: skip
    assert [*found] == [*table]
    for name in table:
        if name in numbers and not pd.api.types.is_bool_dtype(table[name]):
            own = table[name].to_numpy(dtype=float, na_value=np.nan)
            np.testing.assert_array_equal(found[name].to_numpy(dtype=float), own, err_msg=name)
        else:
            own = table[name].astype(object).where(table[name].notna(), "")
            assert list(map(str, found[name])) == list(map(str, own)), name


def test_pandas_reads_every_row_back(family, tmp_path: Path):
    for name, result in family.items():
        require_read_back(result.table, result.to_csv(tmp_path / f"{name}.csv"))


def test_text_of_any_kind_is_read_back(tmp_path: Path):
    made = retained()
    require_read_back(made.table, made.to_csv(tmp_path / "made.csv"))


def test_missing_whole_numbers_stay_whole(tmp_path: Path):
    table = pd.DataFrame(
        {"layer": pd.array([3, None], dtype="Int64"), "metric": ["a", "b"], "value": [0.1, np.nan]}
    )
    wb.Result("x.y", table, retained().provenance).to_csv(tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == '"layer","metric","value"\n3,"a",0.1\n"","b",""\n'


def test_a_table_of_ours_is_replaced_and_nothing_else(tmp_path: Path):
    made, file = retained(), tmp_path / "t.csv"
    made.to_csv(file)
    made.of(NAMES[0]).to_csv(file)
    require_read_back(made.of(NAMES[0]).table, file)
    for content in ("member,metric,value\na,b,1\n", "mine", '"a","b"\n', ""):
        file.write_text(content)
        with pytest.raises(wb.WorkbenchError, match="does not hold a table"):
            made.to_csv(file)
        assert file.read_text() == content


PLAIN = {
    r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^",
    r"\textless{}": "<", r"\textgreater{}": ">", r"\textbar{}": "|", r"\textasciigrave{}": "`",
    r"\&": "&", r"\%": "%", r"\$": "$", r"\#": "#", r"\_": "_", r"\{": "{", r"\}": "}",
    "{[}": "[", "{*}": "*", "-{}": "-", "$-$": "-",
}  # fmt: skip


def printed(cell: str) -> str:
    """What LaTeX prints for a cell, by its rules; fails where anything else is left to obey."""
    known = "|".join(map(re.escape, PLAIN))
    left = re.sub(known, "", cell)
    assert not re.search(r"[\\&%#_{}~^]", left.replace("$n = ", "").replace("$)", ")")), left
    return re.sub(known, lambda found: PLAIN[found[0]], cell)


def tabular(text: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows as they are printed; fails where the table is not one of booktabs."""
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    columns = re.fullmatch(r"\\begin\{tabular\}\{(l+)\}", lines[0])
    assert columns
    assert (lines[1], lines[3]) == (r"\toprule", r"\midrule")
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    rows = []
    for line in (lines[2], *lines[4:-2]):
        assert line.endswith(r" \\")
        cells = re.split(r"(?<!\\)&", line.removesuffix(r" \\"))
        assert len(cells) == len(columns[1])
        rows.append([printed(cell.strip()) for cell in cells])
        # Else LaTeX takes them for an argument of the row before.
        assert not line.lstrip().startswith(("[", "*"))
    return rows[0], rows[1:]


def test_latex_is_a_row_a_member_and_task():
    made = retained()
    header, rows = tabular(made.to_latex(metrics=["score_change", "score"]))
    assert header == ["member", "task", "score change", "score", "n"]
    expected = []
    for i, name in enumerate(NAMES):
        for j, task in enumerate(("box_es", "fa&cts")):
            score, change = i / 8 + j / 64, -(i / 4) - j / 32
            cells = [f"{v:.3g} [{v - 0.25:.3g}, {v + 0.125:.3g}]" for v in (change, score)]
            expected.append([" ".join(visible(name).split()), task, *cells, "40"])
    assert rows == expected


def test_numbers_of_items_stand_with_each_value_where_they_differ():
    made = retained(("a",), ("t",))
    made.table.loc[made.table["metric"] == "score", "n"] = 7
    header, rows = tabular(made.to_latex())
    assert header == ["member", "task", "score", "score change"]
    assert rows == [
        ["a", "t", "0 [-0.25, 0.125] ($n = 7$)", "-0 [-0.25, 0.125] ($n = 40$)"]
    ]  # fmt: skip


def test_values_per_matrix_are_told_by_median_and_quartiles(family):
    result = family["spectral.delta_spectrum"]
    _, rows = tabular(result.to_latex(metrics=["relative_norm"]))
    table = result.table
    changed = table[(table["metric"] == "effective_rank") & (table["value"] > 0)]
    for name, cell, n in rows:
        own = table[(table["member"] == name) & (table["metric"] == "relative_norm")]
        places = changed[changed["member"] == name][["layer", "component"]]
        values = own.merge(places, on=["layer", "component"])["value"]
        middle, low, high = np.quantile(values, [0.5, 0.25, 0.75])
        assert cell == f"{middle:.3g} [{low:.3g}, {high:.3g}]"
        assert n == str(len(values))
    assert [row[0] for row in rows] == result.members


def test_of_intruders_it_is_their_share(family):
    result = family["spectral.intruders"]
    header, rows = tabular(result.to_latex())
    assert header == ["member", "arm", "intruders", "n"]
    cosines = result.metric("max_cosine")
    for name, arm, share, n in rows:
        if arm == "tuned":
            own = cosines[(cosines["member"] == name) & (cosines["rank"] < 10)]["value"]
            assert (share, n) == (f"{(own < 0.5).mean():.3g}", str(len(own)))


def test_of_the_first_page_the_measures_are_the_columns(family):
    header, rows = tabular(family["compare.equivalence"].to_latex())
    assert header[:3] == ["member", "score", "forgetting"]
    assert len(rows) == len(family["compare.equivalence"].members)


def test_every_kept_result_is_a_table_or_one_sentence(family):
    made, refused = 0, []
    for result in family.values():
        try:
            tabular(result.to_latex())
            made += 1
        except wb.WorkbenchError as error:
            refused.append(str(error))
    assert made > len(family) / 2
    assert all("no means of whole runs" in one or "at most 60 rows" in one for one in refused)


def test_what_is_no_table_for_a_paper_is_refused(family):
    with pytest.raises(wb.WorkbenchError, match="no metric 'scores'"):
        retained().to_latex(metrics=["scores"])
    with pytest.raises(wb.WorkbenchError, match="at most 60 rows, found 100"):
        retained(tuple(map(str, range(50)))).to_latex()
    made = retained()
    twice = wb.Result("x.y", pd.concat([made.table, made.table]), made.provenance)
    with pytest.raises(wb.WorkbenchError, match="several values of one name"):
        twice.to_latex()
    with pytest.raises(wb.WorkbenchError, match="no means of whole runs"):
        family["patching.lens.boxes"].to_latex()


def test_a_paper_that_a_table_was_put_into_is_kept(tmp_path: Path):
    made, file = retained(), tmp_path / "table.tex"
    text = made.to_latex(file)
    assert file.read_text() == text
    assert all(line.startswith("%") for line in text.splitlines()[:2])
    made.of(NAMES[1]).to_latex(file)
    assert file.read_text() == made.of(NAMES[1]).to_latex()
    for paper in (f"\\section{{Mine}}\n{text}", f"{text}And so on.\n", f"{text}{text}"):
        file.write_text(paper)
        with pytest.raises(wb.WorkbenchError, match="does not hold a table"):
            made.to_latex(file)
        assert file.read_text() == paper
