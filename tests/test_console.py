import pytest

from sepo.console import print_lines, print_table, size


def test_sizes_are_readable():
    values = (None, 0, 12, 1536, 2**19, 5 * 2**19, 30 * 2**20, 5 * 2**29, 3000 * 2**30)
    expected = ["-", "0 B", "12 B", "1.5 KiB", "512 KiB", "2.5 MiB", "30 MiB", "2.50 GiB", "3,000.00 GiB"]
    assert [size(value) for value in values] == expected


@pytest.mark.parametrize("footer", [None, ["together", "[i]2[/i]"]])
def test_cells_are_printed_as_they_are(capsys, footer):
    """Text that looks like markup comes from a model, a path or a recipe."""
    long = "w" * 300
    print_table("[bold]title[/]", ["[a]", "b"], [["[red]x[/red]", "1"], [long, "2"]], footer=footer)
    print_lines(["[link=x]y", long])
    printed = capsys.readouterr().out
    for text in ("[bold]title[/]", "[a]", "[red]x[/red]", "[link=x]y", *(footer or [])):
        assert text in printed
    assert long in printed.splitlines()
    assert printed.count("w") == 600
