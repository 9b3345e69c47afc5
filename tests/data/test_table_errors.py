"""Everything that may be wrong with a table: one error that names the line and the mend."""

import sys

import pytest

from lit_transfer.data import TableData

ANTS = [f"{n}.png,{'ant' if n % 2 else 'bee'}" for n in range(8)]


def refused(file, message, error=ValueError, **options):
    with pytest.raises(error, match=message):
        TableData(file, **options).setup()


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("no/9.png,ant", r"1 bad row:\n  line 10: there is no file 'no/9\.png' in data\.root='.*'\nCorrect the paths"),
        (",ant", r"line 10: the path is empty"),
        ("../9.png,ant", r"line 10: '\.\./9\.png' lies outside of data\.root"),
        ("/etc/hostname,ant", r"line 10: '/etc/hostname' lies outside of data\.root"),
        ("9.png,", r"line 10: the target is empty\nFill in the target, or leave .*data\.task='multilabel'"),
        ("3.png,bee", r"line 10: image '3\.png' has another target than in line 5\nKeep one row"),
    ],
)
def test_a_bad_row_is_named_with_its_line_and_the_mend(make_table, row, message):
    refused(make_table("path,label", *ANTS, row), message)


def test_all_bad_rows_are_counted_and_the_first_few_named_each_with_its_own_mend(make_table):
    rows = [f"no/{n}.png,ant" for n in range(9)]
    file = make_table("path,label", *ANTS, "9.png,", *rows)
    lines = "".join(rf"  line {11 + n}: there is no file 'no/{n}\.png' in data\.root='.*'\n" for n in range(4))
    refused(file, rf"10 bad rows:\n  line 10: the target is empty\n{lines}  \.\.\. and 5 more\nFill in .* Correct the")


def test_lines_are_those_of_the_file_where_cells_go_over_several_and_lines_are_empty(make_table):
    file = make_table("path,note,label", '0.png,"one\ntwo",ant', "", "1.png,,bee", 'no/2.png,"a\nb",bee')
    refused(file, r"line 6: there is no file 'no/2\.png'", target="label")


def test_a_broken_image_is_named_before_training(make_table):
    file = make_table("path,label", *ANTS)
    (file.parent / "5.png").write_bytes(b"no image")
    refused(file, r"line 7: broken image '5\.png': its content is of no known image format\nRepair the file")
    data = TableData(file, verify=False)
    data.setup()
    assert len(data.train_dataset) + len(data.val_dataset) == 8


def test_a_path_out_of_the_root_and_back_is_fine_and_so_is_an_absolute_one(make_table):
    file = make_table("path,label", *ANTS)
    text = (
        file.read_text()
        .replace("\n1.png", f"\n../{file.parent.name}/1.png")
        .replace("\n2.png", f"\n{file.parent}/2.png")
    )
    file.write_text(text)
    data = TableData(file)
    data.setup()
    assert len(data.train_dataset) + len(data.val_dataset) == 8


@pytest.mark.parametrize("value", ["2", "x", "-1", "0.5"])
def test_a_label_that_is_neither_0_nor_1(make_table, value):
    file = make_table("path,a,b", "0.png,0,1", f"1.png,1,{value}", "2.png,1,")
    message = rf"2 bad rows:\n  line 3: 'b' is '{value}', neither 0 nor 1\n  line 4: the target 'b' is empty\nWrite 0"
    refused(file, message, target=["a", "b"], task="multilabel")


@pytest.mark.parametrize("value", ["many", "3,5", "nan", "inf", "12 mm"])
def test_a_number_that_is_none(make_table, value):
    file = make_table("path,age", "0.png,31.5", f'1.png,"{value}"', "2.png,40")
    refused(file, rf"1 bad row:\n  line 3: 'age' is '{value}', no finite number\nWrite numbers", task="number")


def test_a_list_that_is_none(make_table):
    file = make_table("path,tags", "0.png,a;b", "1.png,\"['a', 'b']\"")
    refused(file, r"line 3: \"\['a', 'b'\]\" is no list\nWrite lists as a;b, or as JSON", task="multilabel")


def test_a_label_that_is_not_among_the_names(make_table):
    file = make_table("path,label", *ANTS, "9.png,antt")
    refused(file, r"line 10: 'antt' is not among data\.names; did you mean 'ant'\?", names=["ant", "bee"])
    file = make_table("path,tags", "0.png,a;b", "1.png,a;c")
    refused(file, r"line 3: 'c' is not among data\.names", names=["a", "b"])


# --- splits ----------------------------------------------------------------------------------------------------------


def test_an_unknown_split_word(make_table):
    file = make_table("path,label,fold", "0.png,ant,train", "1.png,bee,Train", "2.png,ant,vall", "3.png,bee,")
    message = (
        r"line 4: the split is 'vall'; did you mean 'val'\?\n  line 5: the split is empty\nWrite one of train, val"
    )
    refused(file, message, target="label", split="fold")


def test_no_row_of_train(make_table):
    file = make_table("path,label,fold", "0.png,ant,val", "1.png,bee,test")
    refused(file, r"data\.split='fold' has no row of train", target="label", split="fold")


def test_an_image_or_a_group_in_two_splits(make_table):
    rows = ["0.png,ant,train,p1", "1.png,bee,train,p2", "0.png,ant,val,p1", "3.png,ant,val,p2"]
    file = make_table("path,label,fold,patient", *rows)
    message = r"line 4: image '0\.png' has another split than in line 2\nLeave each"
    refused(file, message, target="label", split="fold")
    message = r"2 bad rows:\n  line 4: image .*\n  line 5: group 'p2' has another split than in line 3"
    refused(file, message, target="label", split="fold", group="patient")


def test_an_image_in_two_groups_and_a_row_in_none(make_table):
    file = make_table("path,label,patient", "0.png,ant,p1", "1.png,bee,p2", "0.png,ant,p2", "2.png,ant,")
    message = r"line 4: image '0\.png' has another group than in line 2\n  line 5: the group is empty"
    refused(file, message, target="label", group="patient")


def test_a_class_that_is_not_in_train(make_table):
    rows = ["0.png,ant,train", "1.png,bee,train", "2.png,wasp,val"]
    message = r"line 4: class 'wasp' is in val and in no row of train"
    refused(make_table("path,label,fold", *rows), message, target="label", split="fold")


def test_a_class_too_small_to_split(make_table):
    file = make_table("path,label", *ANTS, "9.png,wasp")
    refused(
        file, r"class 'wasp' in data\.table has 1 training image.*a column data\.split, or set data\.val_fraction=0"
    )
    file = make_table("path,label,patient", *(f"{row},{row[-3:]}" for row in ANTS))
    message = r"no val rows can be taken out of '.*': each group has all samples of some class\. .*data\.val_fraction=0"
    refused(file, message, target="label", group="patient")


def test_a_share_for_test_beside_test_rows(make_table):
    file = make_table("path,label,fold", "0.png,ant,train", "1.png,bee,train", "2.png,bee,test")
    message = r"data\.test_fraction=0\.1 .* holds 1 of them"
    refused(file, message, target="label", split="fold", test_fraction=0.1)


def test_a_number_that_does_not_vary(make_table):
    file = make_table("path,a,b", *(f"{n}.png,{n / 2},7.5" for n in range(8)))
    refused(file, r"'b' is the same in all training rows: leave it out of data\.target", target=["a", "b"])


# --- columns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"image": "Path"},
            r"data\.image='Path' is no column of '.*'\. Did you mean 'path'\? It has 'path', 'label', 'x'",
        ),
        ({"target": "labl"}, r"data\.target='labl' is no column .* Did you mean 'label'\?"),
        ({"target": "label", "split": "fold"}, r"data\.split='fold' is no column"),
        ({"target": "label", "group": "patient"}, r"data\.group='patient' is no column"),
        ({}, r"data\.target must name the column\(s\) of the target; those left are: 'label', 'x'"),
        ({"target": ["x", "x"]}, r"data\.target=\['x', 'x'\]: expected columns that are named once"),
        ({"target": "x", "group": "x"}, r"expected columns that are named once, and for nothing else"),
        ({"target": ["label", "x"], "task": "class"}, r"data\.task='class' takes one column"),
        ({"target": "x", "task": "number", "names": ["a"]}, r"data\.names is for a column of classes or of lists"),
        ({"target": "x", "task": "class", "names": ["a"]}, r"at least two classes; got \['a'\]"),
    ],
)
def test_wrong_columns(make_table, options, message):
    refused(make_table("path,label,x", *(f"{row},{n}" for n, row in enumerate(ANTS))), message, **options)


@pytest.mark.parametrize(
    ("columns", "cells", "message"),
    [
        ("x", ["1", "2", "3"], "its cells are whole numbers"),
        ("x", ["0", "1", "1"], "its cells are whole numbers"),
        ("x", ["1.5", "2", "unknown"], "its cells are numbers and words"),
        ("a,b", ["0,1", "1,2", "0,0"], r"'a' hold\(s\) only 0 and 1, but column 'b' holds '2' in line 3"),
        ("a,b", ["3.5,1.5", "2.5,x", "2,1"], r"not all are numbers, but column 'a' holds '3\.5' in line 2"),
    ],
)
def test_a_task_that_is_not_certain_is_asked_for(make_table, columns, cells, message):
    file = make_table(f"path,{columns}", *(f"{n}.png,{cell}" for n, cell in enumerate(cells)))
    refused(file, rf"not certain.*{message}.*Give data\.task", target=columns.split(","))


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty: expected a heading"),
        (b"path,label\n", r"has a heading and no rows"),
        (b"path,path\n", r"has the column 'path' twice"),
        (b"path,label\na.png,ant\nb.png,bee,3\n", r"line 3: 3 cells under a heading of 2"),
        (b"path,label\na.png,\xe9\n", r"no UTF-8 text: byte 0xe9"),
        (b'path,label\na.png,"ant\n', r"no CSV as expected: .*Mend its quotes"),
    ],
)
def test_files_that_are_no_table(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    refused(tmp_path / "t.csv", message)


def test_no_file_another_kind_of_file_and_no_root(make_table, tmp_path):
    refused(
        tmp_path / "none.csv", r"data\.table must be a CSV or Parquet file; at '.*' there is none", FileNotFoundError
    )
    (tmp_path / "t.xlsx").touch()
    refused(tmp_path / "t.xlsx", r"expected a file that ends in \.csv, \.tsv, \.txt, \.parquet, \.pq")
    refused(make_table("path,label", *ANTS), r"data\.root must be a folder", FileNotFoundError, root=tmp_path / "none")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "t.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    refused(tmp_path / "t.parquet", r"pip install 'lit-transfer\[parquet\]'", ImportError)


def test_a_broken_parquet_file(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no table")
    refused(tmp_path / "t.parquet", r"is no Parquet file that can be read")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "classes"}, r"data\.task must be one of .*; got 'classes'"),
        ({"separator": ""}, r"data\.separator must not be empty"),
        ({"batch_size": 0}, r"data\.batch_size must be at least 1"),
        ({"val_fraction": 1}, r"data\.val_fraction is"),
        ({"image_size": 0}, r"data\.image_size is in pixels"),
    ],
)
def test_wrong_arguments_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        TableData("labels.csv", **options)


def test_testing_without_test_images_says_how_to_get_some(make_table):
    data = TableData(make_table("path,label", *ANTS))
    data.setup()
    with pytest.raises(ValueError, match=r"no test images: .*, or rows of test in the column data\.split"):
        data.test_dataloader()
