"""The action of an S3 request, and whether cluster/bucket-policy.json allows it by the rules of AWS IAM.

https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazons3.html
"""

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

POLICY = Path(__file__).parent.parent / "cluster/bucket-policy.json"


class S3Request(NamedTuple):
    """One request: an action on a bucket or an object; for a listing, its prefix, if any."""

    action: str
    resource: str
    prefix: str | None = None


def request_of(line: str) -> S3Request:
    """The request of the first line of an HTTP request, with the bucket in the path."""
    method, target, _ = line.split(" ")
    path, query = urlsplit(target).path, parse_qs(urlsplit(target).query, keep_blank_values=True)
    bucket, _, key = unquote(path).lstrip("/").partition("/")
    if not key and "delete" not in query:
        prefix = query.get("prefix", [None])[0]
        action = {"GET": "ListBucket", "HEAD": "ListBucket", "PUT": "CreateBucket", "DELETE": "DeleteBucket"}
        return S3Request(f"s3:{action[method]}", f"arn:aws:s3:::{bucket}", prefix)
    action = {"GET": "GetObject", "HEAD": "GetObject", "PUT": "PutObject", "DELETE": "DeleteObject"}
    name = action.get(method, "PutObject")  # POST begins and ends an upload in parts
    if "uploadId" in query and method == "DELETE":
        name = "AbortMultipartUpload"
    if "delete" in query:  # the keys are in the body
        name, key = "DeleteObject", "runs/*"
    return S3Request(f"s3:{name}", f"arn:aws:s3:::{bucket}/{key}")


def allows(bucket: str, request: S3Request) -> bool:
    """Whether the policy allows a request to a bucket."""
    policy = json.loads(POLICY.read_text().replace("my-bucket", bucket))
    return any(_matches(statement, request) for statement in policy["Statement"])


def _matches(statement: dict, request: S3Request) -> bool:
    actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
    if request.action not in actions or not fnmatchcase(request.resource, statement["Resource"]):
        return False
    allowed = statement.get("Condition", {}).get("StringLikeIfExists", {}).get("s3:prefix", ["*"])
    return request.prefix is None or any(fnmatchcase(request.prefix, pattern) for pattern in allowed)


def actions() -> set[str]:
    """All actions the policy allows."""
    statements = json.loads(POLICY.read_text())["Statement"]
    return {
        action
        for one in statements
        for action in (one["Action"] if isinstance(one["Action"], list) else [one["Action"]])
    }
