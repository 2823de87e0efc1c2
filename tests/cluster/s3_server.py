"""moto's S3 server, which answers 503 to everything while a file exists.

python s3_server.py HOST PORT OUTAGE_FILE
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple


def main() -> None:
    host, port, outage = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    s3 = DomainDispatcherApplication(create_backend_app)

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if outage.exists():
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Service Unavailable", [("Content-Type", "application/xml")])
            return [b"<Error><Code>ServiceUnavailable</Code><Message>away</Message></Error>"]
        answer: Iterable[bytes] = s3(environ, start_response)
        return answer

    run_simple(host, port, application, threaded=True)


if __name__ == "__main__":
    main()
