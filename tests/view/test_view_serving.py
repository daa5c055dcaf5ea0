"""What the viewer's server says as it ends."""

import asyncio
import logging

from tracin.view.serving import unfinished_requests_end_quietly


def test_requests_that_ctrl_c_cuts_off_are_no_errors_and_others_are(caplog):
    logger = logging.getLogger("uvicorn.error")

    with unfinished_requests_end_quietly():
        logger.error("Cancel %s running task(s), timeout graceful shutdown exceeded", 4)
        for error in (asyncio.CancelledError("cut off"), ValueError("a mistake")):
            logger.error("Exception in ASGI application", exc_info=error)
    logger.error("later")

    assert [one.exc_info and one.exc_info[0] for one in caplog.records] == [ValueError, None]
