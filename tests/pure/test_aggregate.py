"""From the servers' results to the job's."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.dispatch.aggregate import aggregate
from worker.dispatch.result import EXIT_CODES, JobResult, JobStatus, Outcome, ServerResult
from worker.settings import ExitCodePolicy

UNSUCCESSFUL = [outcome for outcome in Outcome if outcome is not Outcome.SUCCESS]


def result(name: str, outcome: Outcome, exit_code: int | None = None) -> ServerResult:
    code = EXIT_CODES[outcome] if exit_code is None else exit_code
    return ServerResult(f"exec_j_{name}_0", name, name, outcome, code, 0, 0)


def summed(
    *results: ServerResult, cancelled: bool = False, policy: ExitCodePolicy = ExitCodePolicy.SUM
) -> JobResult:
    return aggregate(results, cancelled=cancelled, policy=policy)


names = st.from_regex(r"[a-z]{1,8}-[0-9]", fullmatch=True).filter(lambda name: "time" not in name)
failures = st.builds(result, names, st.just(Outcome.FAILED), st.integers(1, 255))
any_results = st.lists(
    st.one_of(
        failures,
        st.builds(result, names, st.sampled_from([o for o in Outcome if o in EXIT_CODES])),
    ),
    min_size=1,
    max_size=30,
)
policies = st.sampled_from(ExitCodePolicy)


@given(any_results, st.booleans(), policies)
def test_the_status_follows_from_the_outcomes(
    results: list[ServerResult], cancelled: bool, policy: ExitCodePolicy
) -> None:
    outcomes = {each.outcome for each in results}

    job = aggregate(results, cancelled=cancelled, policy=policy)

    if cancelled:
        assert job.status is JobStatus.CANCELLED
    elif Outcome.SUCCESS in outcomes:
        assert job.status is JobStatus.COMPLETED
    elif outcomes == {Outcome.TIMED_OUT}:
        assert job.status is JobStatus.TIMEOUT
    else:
        assert job.status is JobStatus.FAILED


@given(any_results, st.booleans(), policies)
def test_the_exit_code_is_0_exactly_when_all_succeeded(
    results: list[ServerResult], cancelled: bool, policy: ExitCodePolicy
) -> None:
    job = aggregate(results, cancelled=cancelled, policy=policy)

    assert (job.exit_code == 0) == all(each.outcome is Outcome.SUCCESS for each in results)


@given(any_results, st.booleans())
def test_the_exit_code_is_the_sum_of_the_servers(
    results: list[ServerResult], cancelled: bool
) -> None:
    job = aggregate(results, cancelled=cancelled, policy=ExitCodePolicy.SUM)

    assert job.exit_code == sum(each.exit_code for each in results)


@given(any_results, st.booleans())
def test_partial100_tells_a_partial_success_by_100_and_the_failed(
    results: list[ServerResult], cancelled: bool
) -> None:
    failed = sum(each.outcome is not Outcome.SUCCESS for each in results)

    job = aggregate(results, cancelled=cancelled, policy=ExitCodePolicy.PARTIAL100)

    if 0 < failed < len(results) and not cancelled:
        assert job.exit_code == 100 + failed
    else:
        assert job.exit_code == sum(each.exit_code for each in results)


@given(any_results, st.booleans(), policies)
def test_the_message_counts_and_is_one_line_without_the_apps_word_for_a_passed_limit(
    results: list[ServerResult], cancelled: bool, policy: ExitCodePolicy
) -> None:
    succeeded = sum(each.outcome is Outcome.SUCCESS for each in results)

    message = aggregate(results, cancelled=cancelled, policy=policy).message

    assert f"{succeeded} of {len(results)} servers succeeded" in message
    assert not re.search("timeout|timed.?out", message, re.IGNORECASE)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("outcome", "exit_code"),
    [
        (Outcome.SUCCESS, 0),
        (Outcome.TIMED_OUT, 124),
        (Outcome.CANCELLED, 130),
        (Outcome.UNREACHABLE, 255),
        (Outcome.NOT_DEPLOYED, 126),
        (Outcome.LOST, 125),
    ],
)
def test_each_outcome_without_an_exit_code_of_its_own_has_one(
    outcome: Outcome, exit_code: int
) -> None:
    assert EXIT_CODES[outcome] == exit_code


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Outcome.SUCCESS, JobStatus.COMPLETED),
        (Outcome.FAILED, JobStatus.FAILED),
        (Outcome.TIMED_OUT, JobStatus.TIMEOUT),
        (Outcome.UNREACHABLE, JobStatus.FAILED),
        (Outcome.NOT_DEPLOYED, JobStatus.FAILED),
        (Outcome.LOST, JobStatus.FAILED),
    ],
)
def test_a_job_with_one_server_has_its_servers_status(outcome: Outcome, status: JobStatus) -> None:
    code = 7 if outcome is Outcome.FAILED else None

    job = summed(result("web-1", outcome, code))

    assert job.status is status
    assert job.exit_code == (7 if code else EXIT_CODES[outcome])


def test_a_job_cancelled_after_all_its_servers_ended_is_cancelled() -> None:
    job = summed(result("a", Outcome.SUCCESS), result("b", Outcome.SUCCESS), cancelled=True)

    assert job == JobResult(JobStatus.CANCELLED, 0, "CANCELLED: 2 of 2 servers succeeded")


def test_one_server_over_its_limit_among_failures_is_a_failure() -> None:
    job = summed(result("a", Outcome.TIMED_OUT), result("b", Outcome.FAILED, 1))

    assert job.status is JobStatus.FAILED
    assert job.exit_code == 125


def test_a_partial_success_names_who_failed_and_how() -> None:
    job = summed(
        result("web-1", Outcome.SUCCESS),
        result("db-1", Outcome.FAILED, 7),
        result("web-2", Outcome.SUCCESS),
    )

    assert job.message == "PARTIAL SUCCESS: 2 of 3 servers succeeded (failed: db-1 exit 7)"


def test_reasons_are_grouped_by_outcome() -> None:
    job = summed(
        result("web-1", Outcome.UNREACHABLE),
        result("db-1", Outcome.FAILED, 7),
        result("db-2", Outcome.FAILED, 1),
        result("db-3", Outcome.TIMED_OUT),
    )

    assert job.message == (
        "FAILURE: 0 of 4 servers succeeded "
        "(unreachable: web-1; failed: db-1 exit 7, db-2 exit 1; over limit: db-3)"
    )


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (Outcome.SUCCESS, "SUCCESS: 1 of 1 servers succeeded"),
        (Outcome.TIMED_OUT, "OVER LIMIT: 0 of 1 servers succeeded (over limit: a)"),
        (Outcome.NOT_DEPLOYED, "FAILURE: 0 of 1 servers succeeded (not deployed: a)"),
        (Outcome.LOST, "FAILURE: 0 of 1 servers succeeded (lost: a)"),
    ],
)
def test_each_end_has_its_message(outcome: Outcome, message: str) -> None:
    assert summed(result("a", outcome)).message == message


@given(st.integers(11, 500), st.sampled_from(UNSUCCESSFUL))
def test_a_long_list_of_names_is_cut_and_says_so(count: int, outcome: Outcome) -> None:
    job = summed(*(result(f"s-{n}", outcome, 9) for n in range(count)))

    assert f"and {count - 10} more" in job.message
    assert job.message.count("s-") == 10
