"""Labels as people's files have them: lists, missing values, odd numbers; what is refused, and what it says."""

import polars
import pytest

from dnamamba import alphabet
from dnamamba.errors import InputError
from dnamamba.finetuning.tasks.examples import Target
from dnamamba.finetuning.tasks.labels import encode_labels, find_target, split_vectors
from dnamamba.finetuning.tasks.readers import Record, TableColumns, read_records
from dnamamba.tables import whole_number


def records(*labels, split="train"):
    return [Record(f"{split}, line {n}", "", alphabet.encode("ACGT"), (label,)) for n, label in enumerate(labels, 2)]


def parquet(path, labels):
    polars.DataFrame({"sequence": ["ACGT"] * len(labels), "label": labels}).write_parquet(path)
    return list(read_records(path, TableColumns()))


@pytest.mark.parametrize(
    "labels",
    [
        [[0, 1, 1], [1, 0, 1], [0, 0, 0]],
        [[False, True, True], [True, False, True], [False, False, False]],
        [[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]],
    ],
)
@pytest.mark.parametrize("kind", ["auto", "multilabel"])
def test_lists_of_0_and_1_are_a_label_a_position(tmp_path, labels, kind):
    splits, names = split_vectors({"train": parquet(tmp_path / "train.parquet", labels), "dev": []}, kind, None)
    target = find_target(splits["train"], kind, names)
    assert target == Target("multilabel", ("label_0", "label_1", "label_2"))
    assert encode_labels(splits["train"], target).tolist() == [[0, 1, 1], [1, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("texts", [("0;1", "1;1"), ("[0, 1]", "[1, 1]"), ("[0 1]", "[1 1]"), ("(0, 1)", "(1, 1)")])
def test_vectors_in_text_are_those_of_parquet(texts):
    splits, names = split_vectors({"train": records(*texts)}, "auto", ["y"])
    target = find_target(splits["train"], "auto", names)
    assert target.names == ("y_0", "y_1") and encode_labels(splits["train"], target).tolist() == [[0, 1], [1, 1]]


def test_lists_of_numbers_are_several_targets_of_a_regression(tmp_path):
    found = parquet(tmp_path / "train.parquet", [[0.5, -1.0], [2.0, 1e-3]])
    splits, names = split_vectors({"train": found}, "regression", None)
    target = find_target(splits["train"], "regression", names)
    assert encode_labels(splits["train"], target).tolist() == [[0.5, -1.0], [2.0, pytest.approx(1e-3)]]


def test_lists_of_names_and_decimal_commas_are_no_vectors(tmp_path):
    for labels in ([["a", "b"], ["b"]], [[0, 1], [1]], [[3, 7], [7, 9]]):
        found = parquet(tmp_path / "train.parquet", labels)
        assert split_vectors({"train": found}, "multilabel", None) == ({"train": found}, None)
        target = find_target(found, "multilabel", None)
        assert encode_labels(found, target).sum(1).tolist() == [len(label) for label in labels]
    assert split_vectors({"train": records("1,5", "2,5")}, "regression", None)[1] is None


def test_a_vector_of_another_length_is_named():
    with pytest.raises(InputError, match=r"test, line 3: label has 3 values, the first one has 2"):
        split_vectors({"train": records("0;1", "1;0"), "test": records("0;1", "0;1;1", split="test")}, "auto", None)


@pytest.mark.parametrize("texts", [("0;1;1", "0;.;1"), ("0;1;1", "0;;1"), ("[0, 1, 1]", "[0, nan, 1]")])
def test_a_vector_with_a_missing_value_is_no_class(texts):
    found, names = split_vectors({"train": records(*texts)}, "auto", None)
    with pytest.raises(InputError, match=r"train, line 3: the label is (missing|empty)"):
        encode_labels(found["train"], find_target(found["train"], "auto", names))


def test_vectors_of_several_lengths_are_no_classes():
    with pytest.raises(InputError, match="train, line 3: label has 2 values, the first one has 3"):
        split_vectors({"train": records("0;1;1", "1;0")}, "auto", None)


@pytest.mark.parametrize("label", [[[0, 1], [1, 0]], {"a": 1}, [{"a": 1}]])
def test_lists_within_lists_are_no_labels(tmp_path, label):
    with pytest.raises(InputError, match=r"row 1: label is .*; expected a value or one list of them"):
        parquet(tmp_path / "train.parquet", [label])


@pytest.mark.parametrize("missing", ["nan", "NaN", "NA", "<NA>", "N/A", "null", "NULL", "None", "."])
@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "regression"])
def test_what_tables_write_for_missing_is_no_class(missing, kind):
    rows = records("0", "1", missing)
    with pytest.raises(InputError, match=r"train, line 4: the label is missing \('"):
        encode_labels(rows, find_target(rows, kind, None))
    rows = records("0", "1")
    with pytest.raises(InputError, match=r"dev, line 2: the label is missing"):
        encode_labels(records(missing, split="dev"), find_target(rows, kind, None))


@pytest.mark.parametrize(
    "labels", [[0.0, float("nan")], [0.0, None], [[0.0, 1.0], [float("nan"), 1.0]], [["a"], [None]]]
)
def test_nan_and_null_of_parquet_are_missing(tmp_path, labels):
    with pytest.raises(InputError, match=r"row 2: (the )?label is missing"):
        find_target(parquet(tmp_path / "train.parquet", labels), "auto", None)


@pytest.mark.parametrize("labels", [("²", "3"), ("--5", "5"), ("1_0", "2"), ("٢", "3"), ("9" * 30, "1")])
def test_odd_numbers_are_names_of_classes(labels):
    assert find_target(records(*labels), "auto", None).names == tuple(sorted(labels))


def test_messages_list_the_values_that_are_there():
    rows = [Record("f, line 2", "", alphabet.encode("A"), (text, "1")) for text in ("0", "yes", "no", "yes")]
    with pytest.raises(InputError, match=r"a is 'yes', expected 0 or 1; the values there are 0, yes, no"):
        encode_labels(rows, Target("multilabel", ("a", "b")))
    with pytest.raises(InputError, match=r"300 different numbers as labels \((\S+, ){9}\S+ and 290 more\); take"):
        find_target(records(*(str(n / 7) for n in range(300))), "auto", None)
    with pytest.raises(InputError, match=r"label 'z' is not among the classes of train \(x, y\)"):
        encode_labels(records("z"), Target("multiclass", ("x", "y")))


@pytest.mark.parametrize("text", ["1_0", "\u0661", "1²", "inf", "0x10", "one"])
def test_numbers_of_a_regression_are_decimals(text):
    assert encode_labels(records("-.5e1", "+2"), Target("regression", ("a",))).tolist() == [[-5], [2]]
    with pytest.raises(InputError, match=f"a is '{text}', expected a number; the values there are"):
        encode_labels(records("1", text), Target("regression", ("a",)))


@pytest.mark.parametrize("text", ["", "+20", "1_0", "1²", "--5", "-5", "-0", " 5", "5\n", "٢", "1.0", "1e3", "9" * 19])
def test_whole_numbers_are_plain_digits(text):
    assert whole_number(text) is None


def test_whole_numbers_have_a_range():
    assert [whole_number(text) for text in ("0", "007", "9" * 18)] == [0, 7, 10**18 - 1]
    assert [whole_number(text, lowest=-3) for text in ("-3", "-4")] == [-3, None]
