"""Problems: the answer to every error that a job can end with."""

import json

import pytest

from service.contract.errors import SharecapError
from service.contract.jobs import ErrorInfo
from service.problems import failed_job_response


def all_errors(kind: type[SharecapError] = SharecapError) -> list[type[SharecapError]]:
    return [kind, *(error for child in kind.__subclasses__() for error in all_errors(child))]


@pytest.mark.parametrize("kind", all_errors())
def test_every_error_of_a_job_has_a_response(kind: type[SharecapError]) -> None:
    answer = failed_job_response(ErrorInfo(code=kind.code, detail="Why.", retryable=True), "/captions/cap_1", {})
    problem = json.loads(bytes(answer.body))
    assert (answer.status_code, problem["code"], problem["detail"]) == (kind.status, kind.code, "Why.")
    assert (problem["job"], problem["retryable"]) == ("/captions/cap_1", True)
