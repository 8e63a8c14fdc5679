"""A real S3 server on loopback, for tests that read and write object stores as users do."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

BUCKET = "lab"
# Planted: no log, attribute or message may ever hold them.
KEY_ID, SECRET = "AKIAPLANTEDKEYID", "planted-secret-access-key"


@dataclass(frozen=True)
class S3Server:
    """A running server with one bucket, `lab`.

    Attributes:
      endpoint: its http address.
      client: boto3's, to look at the bucket from outside.
    """

    endpoint: str
    client: Any

    @property
    def environment(self) -> dict[str, str]:
        """What a user sets to reach it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }

    def listing(self, prefix: str = "") -> list[str]:
        """Names of the objects below a prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return sorted(item["Key"] for page in pages for item in page.get("Contents", []))

    def get(self, key: str) -> bytes:
        """One object."""
        content: bytes = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return content

    def publish(self, prefix: str) -> None:
        """Let anyone read what lies below a prefix."""
        for key in self.listing(prefix):
            self.client.put_object_acl(Bucket=BUCKET, Key=key, ACL="public-read")


@contextmanager
def running_s3() -> Iterator[S3Server]:
    """Run the server in a thread; it is gone with its objects afterwards."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line per request otherwise
    os.environ["NO_PROXY"] = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1"]))
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET,
        )
        client.create_bucket(Bucket=BUCKET)
        yield S3Server(endpoint, client)
    finally:
        server.stop()
