"""The messages of an endpoint that is ready, and the wait for the signal that ends it."""

import logging
import signal
import threading

from boom_ray.serve.address import url_of
from boom_ray.serve.keys import KEY_VARIABLE
from boom_ray.serve.served_model import ServedModel

logger = logging.getLogger(__name__)


def log_ready(models: list[ServedModel], host: str, port: int, has_key: bool) -> None:
    """Log the URL, and an example request with curl and with OpenAI's client."""
    url, names = url_of(host, port), ", ".join(f"{model.name} {model.version}" for model in models)
    header = f'-H "Authorization: Bearer ${KEY_VARIABLE}" ' if has_key else ""
    api_key = f'os.environ["{KEY_VARIABLE}"]' if has_key else '"none"'
    logger.info("serving %s at %s  (its API: %s/docs)", names, url, url)
    logger.info(
        "  curl %s/v1/embeddings -H 'Content-Type: application/json' %s-d '{\"input\": \"a text\"}'",
        url,
        header,
    )
    logger.info(
        '  openai.OpenAI(base_url="%s/v1", api_key=%s).embeddings.create(model="%s", input=["a text"])',
        url,
        api_key,
        models[0].name,
    )


def wait_for_signal() -> None:
    """Return upon Ctrl-C or SIGTERM."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        logger.info("stopping")
    finally:
        signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)
