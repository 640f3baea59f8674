"""The tests that draw at random and compare with a tolerance of chance declare how often they fail.

Every such test carries ``@pytest.mark.false_alarm(rate)``, its chance of failing on other seeds
though all is right, of all its parameters together. With the seeds that stand in the tests a rerun
gives the same numbers on the same machine: the rates are those for other torch versions, whose
streams of random numbers may differ.
"""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
MOST = 1e-6  # for one run of all tests
# Words and comparisons by which a test shows that it trusts chance.
BY_CHANCE = re.compile(
    r"false[ -]alarm|\|z\| <|abs\(\)[.\w()]* < \d+(?:\.\d+)? \* \w*(?:error|spread)"
)
EXACT = {  # false alarms of a detector, which are the subject there
    "test_false_alarm_rate_is_at_most_alpha_by_enumerating_the_ranks",
    "test_ratio_has_the_best_hit_rate_against_its_own_background",
}


def rates_in(source: str) -> list[tuple[str, float | None, str]]:
    """Name, declared rate and text of every test function."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            rates = [
                ast.literal_eval(mark.args[0])
                for mark in node.decorator_list
                if ast.unparse(mark).startswith("pytest.mark.false_alarm(")
            ]
            found.append((node.name, sum(rates) if rates else None, ast.unparse(node)))
    return found


def all_tests() -> list[tuple[str, float | None, str]]:
    files = sorted(TESTS.rglob("test_*.py"))
    return [
        test
        for file in files
        if file != Path(__file__) and file.parent.name != "browser"
        for test in rates_in(file.read_text("utf-8"))
    ]


def test_declared_false_alarms_sum_to_less_than_one_in_a_million_runs():
    rates = {name: rate for name, rate, _ in all_tests() if rate is not None}
    assert len(rates) > 20 and all(0 < rate < MOST for rate in rates.values())
    assert sum(rates.values()) < MOST, f"{sum(rates.values()):.2g}"


def test_every_test_that_trusts_chance_declares_its_rate():
    silent = [
        name
        for name, rate, text in all_tests()
        if rate is None and BY_CHANCE.search(text) and name not in EXACT
    ]
    assert silent == []


def test_a_silent_test_and_a_sum_are_found():
    source = '''
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.false_alarm(2e-9)
def test_declared(k):
    """Within 6 standard errors."""
    assert (mean - 1).abs() < 6 * error

def test_silent():
    assert (mean - 1).abs() < 5.4 * error

def test_of_no_chance():
    assert (mean - 1).abs() < 1e-9
'''
    declared, silent, exact = rates_in(source)
    assert declared[1] == 2e-9 and silent[1] is None
    assert BY_CHANCE.search(declared[2]) and BY_CHANCE.search(silent[2])
    assert not BY_CHANCE.search(exact[2])
