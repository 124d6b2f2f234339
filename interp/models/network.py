"""Where the hub has no address, only its cache is asked: each file would be tried for minutes."""

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants


def offline_without_network() -> None:
    """Put the hub into offline mode where its host cannot be resolved, and back where it can.

    What the user has set (`HF_HUB_OFFLINE`) and machines behind a proxy are left as they are.
    """
    if getproxies() or (constants.HF_HUB_OFFLINE and not _state["is_ours"]):
        return
    _state["is_ours"] = constants.HF_HUB_OFFLINE = not _has_address(constants.ENDPOINT)


_state = {"is_ours": False}


def _has_address(url: str) -> bool:
    try:
        return bool(socket.getaddrinfo(urlsplit(url).hostname, None))
    except OSError:
        return False
