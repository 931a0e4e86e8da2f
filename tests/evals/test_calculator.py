import pytest

from llama2_jax.evals.calculator import ToolError, calculate


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("5+3", "8"),
        ("6/2", "3"),
        ("7/2", "3.5"),
        ("0.1+0.2", "0.3"),
        ("2 + 3 * 4", "14"),
        ("-2**2", "-4"),
        ("2**-1", "0.5"),
        ("7 // 2", "3"),
        ("7 % 3", "1"),
        ("((((1+2)*3)))", "9"),
        ("(" * 50 + "1" + ")" * 50, "1"),
        ("1,234,567 + 1", "1234568"),
        ("$1,200.50 / 2", "600.25"),
        ("20% * 50", "10"),
        ("50 * 20%", "10"),
        ("5 x 3", "15"),
        ("5 \u00d7 3 \u00f7 2 \u2212 1", "6.5"),
        ("2^10 =", "1024"),
        ("3 + 4 = ?", "7"),
        ("10**20 + 1", "100000000000000000001"),
        ("1/3", "0.333333333333"),
        ("2/3", "0.666666666667"),
        ("3/200000", "0.000015"),
        ("2500000000000*2.0", "5000000000000"),
        ("12*07", "84"),
        ("007.50 + 100 + 0.05", "107.55"),
    ],
)
def test_values(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("9**9**9", "the exponent is above 100"),
        ("(9**99)**99", "too large"),
        ("10**29*11", "too large"),
        ("9" * 100, "too large"),
        ("1" + "+1" * 100, "has 201 characters; at most 200 are read"),
        ("1e999", "only numbers"),
        ("__import__('os').system('true')", "only numbers"),
        ("().__class__", "only numbers"),
        ("'a'*10**9", "only numbers"),
        ("True + 1", "only numbers"),
        ("(1, 2)", "only numbers"),
        ("2(3)", "only numbers"),
        ("1..real", "only numbers"),
        ("\uff15+\u0663", "only numbers"),
        ("five plus three", "only numbers"),
        ("3j", "only numbers"),
        ("1\n+1; 2", "only numbers"),
        ("", "only numbers"),
        ("()", "only numbers"),
        ("5 +", "no expression"),
        ("(" * 150, "no expression"),
        ("(((1)", "no expression"),
        ("5 3", "no expression"),
        ("~5", "only numbers"),
        ("1/0", "division by zero"),
        ("5 % 0", "division by zero"),
        ("0**-1", "division by zero"),
        ("(-8)**0.5", "not real"),
    ],
)
def test_all_else_is_refused(expression: str, message: str) -> None:
    with pytest.raises(ToolError, match=message):
        calculate(expression)


def test_a_chain_of_signs_is_as_deep_as_it_gets() -> None:
    assert calculate("-" * 198 + "1") == "1"
