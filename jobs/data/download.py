"""Download of a published file. Imported when a download starts, because `requests` takes time to import."""

import requests
import urllib3

from jobs.errors import UnavailableError, first_line
from jobs.http_limits import operation

_TIMEOUT = 20.0  # seconds without an answer
_MAX_SECONDS = 3600.0


def download(url: str, max_bytes: int) -> bytes:
    """Return the content at an address.

    Raises:
        UnavailableError: The address cannot be reached, is too slow, or has more than `max_bytes`.
    """
    try:
        with operation(url, max_bytes, _MAX_SECONDS):
            # Neither asks for a compressed transfer nor decodes one, because the limit is on the bytes received.
            headers = {"Accept-Encoding": "identity"}
            with requests.get(url, headers=headers, timeout=_TIMEOUT, stream=True) as response:
                response.raise_for_status()
                content: bytes = response.raw.read(decode_content=False)
                return content
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise UnavailableError(f"{url}: cannot download ({first_line(error)}). Check the network.") from error
