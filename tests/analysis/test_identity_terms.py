import json

import pytest

from llama2_jax.analysis.demographics import Mention, mention_finder
from llama2_jax.analysis.identity_terms import identity_families, read_identity_axes
from llama2_jax.data.records import DataError

# the form of HolisticBias, with its commas; the terms of the axes are few and our own choice
NESTED = """{
    "age": {"young": ["teen",]},
    "gender_and_sex": {"binary": [{"descriptor": "Female", "gender": "female"}], "queer": ["LGBT","queer",],},
    "nationality": {"x": ["American"]},
    "race_ethnicity": {
        "black": [{"descriptor": "Black", "preference": "reviewed"}, "African-American",],
        "white": ["white", "say \\",]\\" again"]
    },
    "religion": {"all": ["Bahá'í"]},
    "sexual_orientation": {"queer": ["queer", "LGBT", "gay"], "straight": ["straight"]},
}"""


def test_the_five_axes_of_the_paper_in_the_form_of_holistic_bias(tmp_path):
    path = tmp_path / "descriptors.json"
    path.write_text(NESTED, encoding="utf-8")
    assert read_identity_axes(path) == {
        "Gender and Sex": {"female"},  # what Sexual Orientation has too is gone
        "Sexual Orientation": {"queer", "lgbt", "gay", "straight"},
        "Nationality": {"american"},
        "Race and Ethnicity": {"black", "african-american", "white", 'say ",]" again'},
        "Religion": {"bahá'í"},
    }


def test_lists_of_ones_own(tmp_path):
    path = tmp_path / "terms.json"
    path.write_text(json.dumps({"Handedness": ["left-handed", "Left-handed "], "age": ["old"]}))
    assert read_identity_axes(path) == {"Handedness": {"left-handed"}, "age": {"old"}}


def test_every_term_is_of_its_axis():
    find = mention_finder(identity_families({"race": frozenset({"asian", "latin", "white"})}))
    assert find("Latin on white") == {Mention("race"), Mention("race", "latin"), Mention("race", "white")}
    assert find("paint") == set()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "no object"),
        ("{}", "no object"),
        ('{"age": "old"}', "age is not a list of terms"),
        ('{"age": {"young": []}}', "age, young is not a list of terms"),
        ('{"age": ["old", 5]}', "age: 5 is no term"),
        ('{"age": ["+"]}', r"age: '\+' is no term"),
        ('{"age": [{"term": "old"}]}', "age: .*'term': 'old'.* is no term"),
    ],
)
def test_a_bad_file_is_named_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "terms.json"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"terms\.json: .*{reason}"):
        read_identity_axes(path)
