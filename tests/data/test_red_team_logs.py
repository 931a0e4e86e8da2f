import pytest

from llama2_jax.data.chat import Message
from llama2_jax.data.records import DataError
from llama2_jax.data.red_team_logs import attack_row, read_attacks, read_sessions, session_row
from tests.experiments.runs import write_lines

SESSION = {"session": "s1", "person": "p1", "version": "V1", "hours": 1.5}
USER, ASSISTANT = (
    (lambda text: {"role": "user", "content": text}),
    (lambda text: {"role": "assistant", "content": text}),
)
ATTACK = {
    "session": "s1",
    "messages": [
        USER("Hi"),
        ASSISTANT("Hello"),
        USER("How?"),
        ASSISTANT("So."),
        USER("And?"),
        ASSISTANT("No."),
    ],
    "violating_turns": [2],
    "risk_areas": ["theft", "fraud"],
    "degree_of_risk": 4,
    "attack_vector": "hypothetical",
    "topics": ["banks"],
}


def without(row, key):
    return {name: value for name, value in row.items() if name != key}


def read(tmp_path, sessions, attacks, **options):
    known = read_sessions(write_lines(tmp_path / "sessions.jsonl", sessions))
    return read_attacks(write_lines(tmp_path / "attacks.jsonl", attacks), known, **options)


def test_a_log_is_read_and_written_again(tmp_path) -> None:
    (attack,) = read(tmp_path, [SESSION], [ATTACK], risk_areas=["fraud", "theft"])
    assert (attack.session.person, attack.session.hours, attack.turns) == ("p1", 1.5, 3)
    assert attack.violating_prompts == [
        (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "How?"))
    ]
    assert session_row(attack.session) == SESSION
    assert read(tmp_path, [session_row(attack.session)], [attack_row(attack)]) == [attack]


def test_vector_and_topics_may_be_left_out(tmp_path) -> None:
    (attack,) = read(tmp_path, [SESSION], [without(without(ATTACK, "attack_vector"), "topics")])
    assert (attack.attack_vector, attack.topics) == ("", ())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hours": 0}, "line 1: 'hours' is 0; it must be a number above 0"),
        ({"hours": True}, "'hours' is True"),
        ({"hours": float("inf")}, "'hours' is inf"),
        ({"person": " "}, "'person' is empty"),
        ({"hour": 1}, "unknown key\\(s\\) hour; known: session, person, version, hours"),
    ],
)
def test_bad_sessions(tmp_path, change, reason) -> None:
    with pytest.raises(DataError, match=reason):
        read(tmp_path, [SESSION | change], [ATTACK])


def test_a_session_stands_once(tmp_path) -> None:
    with pytest.raises(DataError, match="line 2: session 's1' stands twice"):
        read(tmp_path, [SESSION, SESSION | {"person": "p2"}], [ATTACK])


@pytest.mark.parametrize("key", ["session", "messages", "violating_turns", "risk_areas", "degree_of_risk"])
def test_a_missing_label_is_named(tmp_path, key) -> None:
    with pytest.raises(DataError, match=f"line 1: key '{key}' is missing"):
        read(tmp_path, [SESSION], [without(ATTACK, key)])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"session": "s2"}, "session 's2' is not among the 1 sessions"),
        ({"violating_turns": [4]}, "'violating_turns' is \\[4\\]; it must list turns from 1 to 3"),
        ({"violating_turns": [2, 2]}, "each once"),
        ({"violating_turns": True}, "'violating_turns' is True"),
        ({"risk_areas": []}, "'risk_areas' is empty"),
        ({"risk_areas": ["thefd"]}, "unknown risk area\\(s\\) thefd; known: theft, fraud"),
        ({"risk_areas": "theft"}, "'risk_areas' is 'theft'; it must be a list"),
        ({"degree_of_risk": 6}, "'degree_of_risk' is 6; it must be a whole number from 1 to 5"),
        ({"degree_of_risk": None}, "'degree_of_risk' is None"),
        ({"messages": [USER("Hi")]}, "the last message must be from the assistant"),
    ],
)
def test_bad_dialogues(tmp_path, change, reason) -> None:
    with pytest.raises(DataError, match=reason):
        read(tmp_path, [SESSION], [ATTACK | change], risk_areas=["theft", "fraud"])
