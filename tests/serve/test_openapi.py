"""The routes keep what their OpenAPI document promises, to right requests and to wrong ones."""

from collections import defaultdict

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks

from tests.serve.local_endpoint import local_endpoint

PROMISES = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]


def test_every_response_conforms_to_the_openapi_document(published_qwen3):
    """To its examples, to generated requests, and to requests that violate it."""
    seen = defaultdict[tuple[str, str], set[int]](set)

    def try_out(cases, kind: str) -> None:
        @settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=cases)
        def check(case):
            response = case.call()
            seen[kind, case.path].add(response.status_code // 100)
            case.validate_response(response, checks=PROMISES)

        check()

    with local_endpoint(published_qwen3) as client:
        document = schemathesis.openapi.from_asgi("/openapi.json", client.app)
        for operation in [found.ok() for found in document.get_all_operations()]:
            for cases in document.get_strategies_from_examples(operation):
                try_out(cases, "example")
            try_out(operation.as_strategy(generation_mode=GenerationMode.POSITIVE), "drawn")
            if operation.body:
                try_out(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE), "broken")
    paths = document.raw_schema["paths"]
    assert [path for path in paths if not seen["drawn", path]] == []
    for path in [path for path in paths if "post" in paths[path]]:
        assert (seen["example", path], seen["broken", path]) == ({2}, {4}), path
