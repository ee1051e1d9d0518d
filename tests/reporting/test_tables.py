import io

from rich.console import Console

from jmeta.reporting import tables


def text(table, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def test_adaptation_table_has_a_row_a_step():
    table = tables.adaptation_table([0, 1], [-8.0, 70.123], [-9.0, 60.0], [-7.0, 80.0])
    printed = text(table)
    assert [line.split()[1::2] for line in printed.splitlines() if "[" in line] == [
        ["0", "-8.00", "[-9.00,", "│"],
        ["1", "70.12", "[60.00,", "│"],
    ]


def test_what_is_not_a_number_is_not_available():
    nan = float("nan")
    lines = text(tables.adaptation_table([0, 1], [-8.0, nan], [nan, nan], [nan, nan])).splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "n/a" in line]
    assert cells == [["0", "-8.00", "n/a"], ["1", "n/a", "n/a"]]


def test_components_table_keeps_names_whole():
    printed = text(tables.components_table("Families", [("half-cheetah-direction", "Runs. " * 30)]), width=60)
    assert "half-cheetah-direction" in printed


def test_regret_is_the_distance_to_the_optimum():
    printed = text(tables.adaptation_table([0, 1], [-8.0, 70.0], [-9.0, 60.0], [-7.0, 80.0], 72.5))
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "[" in line]
    assert [row[-1] for row in cells] == ["80.50", "2.50"]
    assert "regret" in printed
